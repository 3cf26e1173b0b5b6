#!/usr/bin/env bash
# Apprise 2.3.0: DingTalk, WeCom and Synology Chat refuse an alert, and it counts as sent
#
# Behaviour: these services refuse with status 200, and say so in the text: an errcode that is not
# 0, or "success": false. Apprise looks at the status alone for these three, and reads the text for
# their neighbours: for Feishu and Lark a "code" that is not 0 is a failure.
# Seen: one server in the place of all five refuses in each service's own words: a robot whose
# keyword is missing, a webhook that was deleted, a NAS that misses something. Five alerts, of
# which three count as sent; `apprise` ends with 0 for them.
# Why it matters: somebody deletes the robot, or gives it a keyword, and from then on no alert
# arrives; a test message is "sent", too, and no fallback is tried. Take a test for good only when
# somebody has read it, and have a second address of another kind.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install apprise==2.3.0
    make_certificate localhost
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import http.server
import json
import os
import ssl
import subprocess
import threading

REFUSALS = {
    "oapi.dingtalk.com": {"errcode": 310000, "errmsg": "keywords not in content"},
    "qyapi.weixin.qq.com": {"errcode": 93000, "errmsg": "invalid webhook url"},
    "127.0.0.1": {"error": {"code": 120, "errors": {"reason": "required"}}, "success": False},
    "open.feishu.cn": {"code": 19024, "msg": "Key Words Not Found"},
    "open.larksuite.com": {"code": 19024, "msg": "Key Words Not Found"},
}
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
TLS.load_cert_chain("certificate.pem", "key.pem")
asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    """A proxy that takes the place of every server behind it, and refuses what it is sent."""

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.request = TLS.wrap_socket(self.request, server_side=True)
        self.setup()
        self.handle()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        asked.append(self.headers["Host"].partition(":")[0])
        answer = json.dumps(REFUSALS[asked[-1]]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"127.0.0.1:{server.server_port}"
os.environ.update(https_proxy=f"http://{address}", no_proxy="127.0.0.1")
token = 32 * "a"
seen = []
for kind, url in (
    ("DingTalk", f"dingtalk://{token}"),
    ("WeCom", f"wecombot://{token}"),
    ("Synology Chat", f"synology://{address}/{token}"),
    ("Feishu", f"feishu://{token}"),
    ("Lark", f"lark://{token}"),
):
    asked.clear()
    end = subprocess.run(
        ["venv/bin/apprise", "--body=the key is dead", f"{url}?verify=no"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode
    seen.append((len(asked), end))
    print(f"{kind:14} alerts refused: {len(asked)}; apprise ends with {end}")
raise SystemExit(seen != [(1, 0)] * 3 + [(1, 1)] * 2)
PYTHON
    still_so 'three of five refusals count as sent'
}

main "$@"
