"""Keys and tokens, by PyJWT.

tokens.py FOLDER make               writes keys.json (a JWK set with the RSA key `r1`) and ec.pem (a P-256 public key), each
                                    with its private key beside it, and stranger.key, which nobody knows
tokens.py FOLDER sign FILE CLAIMS HEADERS [ALGORITHM]
                                    prints a token with these claims, by the private key in FILE; `in` as a claim's value
                                    {"in": seconds} is that far from now
"""

import json
import sys
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import RSAAlgorithm

folder, does = Path(sys.argv[1]), sys.argv[2]


def private(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


if does == "make":
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "rsa.key").write_bytes(private(made))
    jwk = RSAAlgorithm.to_jwk(made.public_key(), as_dict=True) | {"kid": "r1", "use": "sig", "alg": "RS256"}
    (folder / "keys.json").write_text(json.dumps({"keys": [jwk]}))
    for name in ("ec", "stranger"):
        made = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.key").write_bytes(private(made))
        public = made.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pem").write_bytes(public)
else:
    file, claims, headers = folder / sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5])
    algorithm = sys.argv[6] if len(sys.argv) > 6 else ("RS256" if "rsa" in file.name else "ES256")
    for name, value in claims.items():
        if isinstance(value, dict) and "in" in value:
            claims[name] = time.time() + value["in"]
    if algorithm == "none":
        print(jwt.encode(claims, None, algorithm="none", headers=headers))
    elif algorithm == "HS256":
        # The public key taken for a secret that is shared; PyJWT itself refuses to be used so.
        import base64
        import hashlib
        import hmac

        part = lambda value: base64.urlsafe_b64encode(value).rstrip(b"=")  # noqa: E731
        signed = part(json.dumps({"alg": "HS256"} | headers).encode()) + b"." + part(json.dumps(claims).encode())
        print((signed + b"." + part(hmac.new(file.read_bytes(), signed, hashlib.sha256).digest())).decode())
    else:
        print(jwt.encode(claims, file.read_bytes(), algorithm=algorithm, headers=headers))
