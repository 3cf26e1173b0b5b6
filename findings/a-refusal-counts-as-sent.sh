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
    make_tls_proxy localhost
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import os
import subprocess

import tls_proxy
import web_server

REFUSALS = {
    "oapi.dingtalk.com": {"errcode": 310000, "errmsg": "keywords not in content"},
    "qyapi.weixin.qq.com": {"errcode": 93000, "errmsg": "invalid webhook url"},
    "127.0.0.1": {"error": {"code": 120, "errors": {"reason": "required"}}, "success": False},
    "open.feishu.cn": {"code": 19024, "msg": "Key Words Not Found"},
    "open.larksuite.com": {"code": 19024, "msg": "Key Words Not Found"},
}
asked = []


class Handler(tls_proxy.Handler):
    """Refuses what it is sent."""

    def do_POST(self):
        self.read_body()
        asked.append(self.headers["Host"].partition(":")[0])
        self.answer(REFUSALS[asked[-1]])


address = web_server.serve(Handler)
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
