"""The car's pure core: `machine.VehicleCore` takes events and returns commands."""
