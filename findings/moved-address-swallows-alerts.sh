#!/usr/bin/env bash
# Apprise 2.3.0 and Alertmanager 0.25.0: an address has moved, and an empty GET counts as the alert
#
# Behaviour: the server of an address answers 301 (or 302): to https, or to another path. Both
# senders follow, and their HTTP libraries make of the POST a GET without a text, as browsers do.
# Where a page answers that with 200 the alert counts as delivered: Apprise says success,
# Alertmanager counts no failure, and says nothing more before repeat_interval. 308 keeps the POST.
# Seen: five kinds of addresses of Apprise and a webhook of Alertmanager: POST, 301, GET, 200,
# delivered. With ?redirect=no, which is new in Apprise, it is a failure.
# Why it matters: somebody gives a self-hosted ntfy https and lets http move there, the usual
# recipe; ntfy has a web page that answers. From then on no alert arrives, and test messages are
# "sent", too. Write https into addresses, set ?redirect=no (Alertmanager: follow_redirects:
# false), and take a test for good only when somebody has read it.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install apprise==2.3.0
    unpack prometheus-alertmanager=0.25.0-1+b4
    cat > "$TMP/alertmanager" << SH
#!/bin/sh
mount --bind $TMP/debian/usr/share /usr/share # its templates
exec $TMP/debian/usr/bin/prometheus-alertmanager "\$@"
SH
    chmod +x "$TMP/alertmanager"
    cd "$TMP"
    "$PYTHON" - "$(free_port)" << 'PYTHON' || changed 'see above'
import http.server
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.request

import apprise

HOST = "127.0.0.1"
SCHEMES = ("json", "ntfy", "gotify", "mmost", "signal")
REST = {"mmost": "/" + 24 * "a", "signal": "/+15550100001/+15550100002"}


class Server(http.server.ThreadingHTTPServer):
    """Keeps what it is asked, and says 200; or that it has moved, with this status."""

    def __init__(self, status=200, moved_to=""):
        super().__init__((HOST, 0), Handler)
        self.status, self.moved_to, self.seen = status, moved_to, []
        self.address = f"{HOST}:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, bool(text)))
        self.send_response(self.server.status)
        if self.server.moved_to:
            self.send_header("Location", f"http://{self.server.moved_to}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


def by_apprise(server, scheme, query=""):
    sender = apprise.Apprise()
    assert sender.add(f"{scheme}://{server.address}{REST.get(scheme, '/shop')}{query}")
    return "delivered" if sender.notify(body="the key is dead") else "failed"


def by_alertmanager(server):
    with open("alertmanager.yml", "w") as file:
        hook = {"url": f"http://{server.address}/hook"}
        receivers = [{"name": "shop", "webhook_configs": [hook]}]
        json.dump({"route": {"receiver": "shop", "group_wait": "0s"}, "receivers": receivers}, file)
    own = f"{HOST}:{sys.argv[1]}"
    process = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "./alertmanager", f"--web.listen-address={own}",
         "--config.file=alertmanager.yml", "--storage.path=.", "--cluster.listen-address="],
        stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        alert = json.dumps([{"labels": {"alertname": "KeyIsDead"}}]).encode()
        post = urllib.request.Request(
            f"http://{own}/api/v2/alerts", alert, {"Content-Type": "application/json"}
        )
        for _ in range(100):
            time.sleep(0.1)
            try:
                urllib.request.urlopen(post)
                break
            except OSError:
                pass
        time.sleep(5)
        metrics = urllib.request.urlopen(f"http://{own}/metrics").read().decode()
    finally:
        process.terminate()
        process.wait()
    counts = dict(line.rsplit(" ", 1) for line in metrics.splitlines())
    counts = [
        counts[f'alertmanager_{name}_total{{integration="webhook"}}']
        for name in ("notifications", "notifications_failed")
    ]
    return "delivered" if counts == ["1", "0"] else f"failed ({counts})"


logging.disable()
new = Server()
seen = {}
for status in (301, 308):
    old = Server(status, new.address)
    for scheme in SCHEMES:
        seen[status, scheme] = (by_apprise(old, scheme), *new.seen)
        new.seen.clear()
old = Server(301, new.address)
seen[301, "ntfy, ?redirect=no"] = (by_apprise(old, "ntfy", "?redirect=no"), *new.seen)
new.seen.clear()
seen[301, "Alertmanager"] = (by_alertmanager(old), *new.seen)
for (status, scheme), (end, *requests) in seen.items():
    texts = [f"{method} {'with' if text else 'without'} a text" for method, text in requests]
    print(f"{status}  {scheme:20} {end}; at the new address: {', '.join(texts) or 'nothing'}")
    if "no" in scheme:
        assert (end, *requests) == ("failed",), scheme
    else:
        good = ("POST", True) if status == 308 else ("GET", False)
        assert (end, *requests) == ("delivered", good), scheme
PYTHON
    still_so 'an empty GET counts as the alert'
}

main "$@"
