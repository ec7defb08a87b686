"""Identity: certificates for mTLS, and Ed25519 keys that sign what goes to cars.

What a service needs while it runs (`signing`) is apart from what only `edge-runtime pki` needs
(`authority` and `identity`, X.509), so that an idle car never loads the latter.
"""
