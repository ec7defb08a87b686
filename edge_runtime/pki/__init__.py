"""Identity: certificates for mTLS, and Ed25519 keys that sign what goes to cars.

What a service needs while it runs (`signing`, on libsodium: half the time and a seventh of the
memory of OpenSSL's) is apart from what only `edge-runtime pki` needs (`authority` and `identity`,
X.509 on `cryptography`), so that an idle car never loads the latter.
"""
