#!/usr/bin/env bash
# Makes what Flower's SuperLink and SuperNodes need to trust each other; see --help.
set -euo pipefail

usage() {
    cat <<'END'
Usage: make-credentials.sh [--out DIR] [--supernodes N] [--days N] [--host NAME_OR_IP]...

Makes the new folder DIR (default: credentials) with

  ca.pem, ca.key          a certificate authority; every machine needs ca.pem, none needs ca.key
  server.pem, server.key  the SuperLink's certificate, signed by it, and its key
  supernode-1, supernode-1.pub, ... one key pair for each of N SuperNodes (default: 3)

The certificate is for localhost and 127.0.0.1 and for every --host (a name or an IPv4 address), and is valid for
--days days (default: 365). Private files are readable by you alone. Nothing is ever overwritten.

Example: make-credentials.sh --host superlink --host 192.0.2.7 --supernodes 5
END
}

fail() {
    echo "make-credentials.sh: $1" >&2
    exit "${2:-1}"
}

number() {
    [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || fail "$1 must be a whole number from 1 to 99999, got '$2'" 2
}

out=credentials supernodes=3 days=365
# Flower's own worker processes on the SuperLink's machine come through 127.0.0.1, so it is always there.
names="DNS:localhost,IP:127.0.0.1"
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --out | --supernodes | --days | --host) [ $# -gt 1 ] || fail "$1 needs a value" 2 ;;
        *) fail "unknown argument '$1'; see --help" 2 ;;
    esac
    case $1 in
        --out) out=${2%/} ;;
        --supernodes) number "$1" "$2" && supernodes=$2 ;;
        --days) number "$1" "$2" && days=$2 ;;
        --host)
            if [[ $2 =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then
                names+=",IP:$2"
            elif [[ $2 =~ ^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$ ]]; then
                names+=",DNS:$2"
            else
                fail "--host must be a name or an IPv4 address, got '$2'" 2
            fi
            ;;
    esac
    shift 2
done

for tool in openssl ssh-keygen; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install openssl and the OpenSSH client"
done
[ -n "$out" ] || fail "--out needs a folder" 2
[ ! -e "$out" ] && [ ! -L "$out" ] || fail "$out exists already and is left as it is; move it away or choose --out"

# Everything is made aside and moved at the end: no half-made folder, and no moment with readable private files.
umask 077
mkdir -p "$(dirname "$out")"
making=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$making"' EXIT

cat >"$making/openssl.cnf" <<END
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names
END

key() {
    openssl ecparam -genkey -name secp384r1 -noout -out "$making/$1"
}

key ca.key
openssl req -x509 -new -sha384 -config "$making/openssl.cnf" -extensions authority -days "$days" \
    -subj "/CN=metaleak cluster" -key "$making/ca.key" -out "$making/ca.pem"
key server.key
openssl req -new -sha384 -config "$making/openssl.cnf" -subj "/CN=metaleak SuperLink" \
    -key "$making/server.key" -out "$making/server.csr"
openssl x509 -req -sha384 -days "$days" -in "$making/server.csr" -CA "$making/ca.pem" -CAkey "$making/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$making/openssl.cnf" -extensions server \
    -out "$making/server.pem" 2>"$making/said" || fail "openssl did not sign: $(cat "$making/said")"

# A SuperNode's key is in OpenSSH's own format: Flower reads no other.
for node in $(seq "$supernodes"); do
    ssh-keygen -q -t ecdsa -b 384 -N "" -C "supernode-$node" -f "$making/supernode-$node"
done

rm "$making/openssl.cnf" "$making/server.csr" "$making/said"
chmod 644 "$making"/*.pem "$making"/*.pub
# A folder that appeared in the meantime must not be moved into.
mkdir "$out" || fail "$out appeared meanwhile and is left as it is"
mv "$making"/* "$out"
echo "$out: certificates for ${names//,/, }; keys of $supernodes SuperNodes"
