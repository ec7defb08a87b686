"""The car: sensors, the owner's policy, the pure core, the inference engine, the agent."""
