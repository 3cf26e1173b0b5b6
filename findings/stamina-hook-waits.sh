#!/usr/bin/env bash
# stamina 26.1.0: no limit bounds the wait that a backoff hook asks for
#
# Behaviour: `on=` may be a function that returns seconds, as of a server's Retry-After. They are
# slept in full: neither `timeout` (of all tries together) nor `wait_max` shortens them. Then there
# is even one try more, long after the timeout.
# Seen: timeout=1, wait_max=0.2, a hook that says 3 s: tries after 0 and 3 s.
# Why it matters: a maintenance page says "Retry-After: 86400", and a run that was to end after 45 s
# sleeps a day, with its lock and its connection. Who hands a peer's number to such a hook must cut
# it to the time that is left.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install stamina==26.1.0
    local seen
    seen=$("$PYTHON" - << 'PYTHON'
import logging
import time

import stamina

logging.disable()
start, tries = time.monotonic(), []
try:
    for attempt in stamina.retry_context(on=lambda error: 3.0, timeout=1, wait_max=0.2):
        with attempt:
            tries.append(round(time.monotonic() - start))
            raise TimeoutError
except TimeoutError:
    print(*tries)
PYTHON
    )
    echo "timeout=1, wait_max=0.2, the hook says 3 s: tries after ${seen// / and } s"
    [[ $seen == "0 3" ]] || changed "tries after $seen s"
    still_so 'a timeout of 1 s let a sleep of 3 s through, and one try more'
}

main "$@"
