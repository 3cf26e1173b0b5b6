#!/usr/bin/env bash
# msmtp 1.8.23, s-nail 14.9.24, nullmailer 2.2: one address is refused, and nobody gets the mail
#
# Behaviour: a mail goes to three addresses, and the server refuses the second: 550, no such user,
# or 451, later. SMTP lets a client go on with the other two, as smtplib and Apprise 2.3.0 do. These
# three hang up before the mail is sent; the first address, which was accepted, gets nothing either.
# notifiers 2.0.0 goes on, and calls the refusal a success without errors. (curl gives up, too, but
# its manual says so.)
# Seen on Debian 12 with a server that refuses one of three, in both ways.
# Why it matters: an alert to three people reaches none of them from the day on which the mailbox of
# one is closed. msmtp-mta and nullmailer are the sendmail of cron's MAILTO and of many an
# OnFailure=, where nobody reads the exit code. Send each person a mail of his own, or all to a list
# that a real mail server opens, and try the alert once with an address that does not exist.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install apprise==2.3.0 notifiers==2.0.0
    unpack msmtp=1.8.23-1 s-nail=14.9.24-2 nullmailer=1:2.2-4 \
        libgsasl18 libgssglue1 libidn12 libntlm0 libsecret-1-0 # what msmtp needs
    LD_LIBRARY_PATH=$(echo "$TMP"/debian/usr/lib/*-linux-gnu) HOME=$TMP HELOHOST=shop.example.kz \
        "$PYTHON" - "$TMP/debian/usr" << 'PYTHON' || changed 'see above'
import os
import smtplib
import socketserver
import subprocess
import sys
import threading

import apprise
import notifiers

USR, SENDER = sys.argv[1], "shop@example.kz"
ADDRESSES = ["anna@example.kz", "gone@example.kz", "boris@example.kz"]
MAIL = f"From: {SENDER}\nTo: {', '.join(ADDRESSES)}\nSubject: The key is old\n\nRenew it.\n"


class Conversation(socketserver.StreamRequestHandler):
    """Takes mail, but none for `gone`, whom it refuses by server.refusal."""

    def handle(self):
        self.answer("220 mail.example.kz ESMTP")
        accepted = []
        while line := self.rfile.readline().decode().strip().lower():
            if line.startswith("rcpt to:<gone"):
                self.answer(self.server.refusal)
            elif line == "data" and accepted:
                self.answer("354 go on")
                while self.rfile.readline().strip() != b".":
                    pass
                self.server.reached += accepted
                accepted = []
                self.answer("250 taken")
            elif line == "data":
                self.answer("554 for nobody")
            elif line == "quit":
                self.answer("221 until then")
                return
            else:
                if line.startswith("rcpt to:<"):
                    accepted.append(line[9:].partition("@")[0])
                self.answer("250 mail.example.kz")

    def answer(self, line):
        self.wfile.write(f"{line}\r\n".encode())


def run(words, command):
    result = subprocess.run(command, input=words, text=True, capture_output=True, timeout=60)
    return f"exit code {result.returncode}"


def by_msmtp(port):
    options = ["--host=127.0.0.1", f"--port={port}", f"--from={SENDER}", "--auth=off", "--tls=off"]
    return run(MAIL, [f"{USR}/bin/msmtp", "--file=/dev/null", *options, "--", *ADDRESSES])


def by_s_nail(port):
    options = ["v15-compat", "sendwait", "nosave", f"from={SENDER}", "smtp-auth=none"]
    options = [f"-S{option}" for option in [*options, f"mta=smtp://127.0.0.1:{port}"]]
    return run(MAIL, [f"{USR}/bin/s-nail", "-:/", *options, "-s", "The key is old", *ADDRESSES])


def by_nullmailer(port):
    with open("mail", "w") as mail:
        mail.write("\n".join([SENDER, *ADDRESSES, "", MAIL]))
    options = f"host=127.0.0.1\nport={port}\n\n"
    return run(options, ["bash", "-c", f"exec {USR}/lib/nullmailer/smtp 3< mail"])


def by_smtplib(port):
    with smtplib.SMTP("127.0.0.1", port) as client:
        return f"refused: {list(client.sendmail(SENDER, ADDRESSES, MAIL))}"


def by_apprise(port):
    alert = apprise.Apprise(f"mailto://127.0.0.1:{port}/?from={SENDER}&to={','.join(ADDRESSES)}")
    return f"success: {bool(alert.notify('Renew it.'))}"


def by_notifiers(port):
    options = {"host": "127.0.0.1", "port": port, "from_": SENDER, "subject": "The key is old"}
    answer = notifiers.get_notifier("email").notify(to=ADDRESSES, message="Renew it.", **options)
    return f"success: {answer.ok}, errors: {answer.errors}"


def try_all(refusal):
    for use in (by_msmtp, by_s_nail, by_nullmailer, by_smtplib, by_apprise, by_notifiers):
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Conversation) as server:
            server.daemon_threads, server.refusal, server.reached = True, refusal, []
            threading.Thread(target=server.serve_forever, daemon=True).start()
            said = use(server.server_address[1])
            server.shutdown()
            print(f"{refusal[:3]}  {use.__name__:13}  reached: {server.reached}; {said}")
            yield use, server.reached, said


os.chdir(os.environ["HOME"])
for refusal in ("550 no such user", "451 later"):
    for use, reached, said in try_all(refusal):
        if use in (by_msmtp, by_s_nail, by_nullmailer):
            assert not reached, use
            assert said != "exit code 0", use
        else:
            assert reached == ["anna", "boris"], use
        assert use is not by_apprise or said == "success: False"
        assert use is not by_notifiers or said == "success: True, errors: None"
PYTHON
    still_so 'one address that is refused silences three senders, and notifiers says nothing of it'
}

main "$@"
