"""E-mail about runs, by SMTP."""

from __future__ import annotations

import smtplib
import ssl
from contextlib import suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from apsislib.config.keys import Smtp
from apsislib.errors import ApsisError, Unavailable
from apsislib.extensions import Snapshot
from apsislib.runs import Json, instance, stamp

PATIENCE = 30.0  # s for each step of the conversation; the action fails after it
TAIL = 4000  # bytes of a run's output that go along: what a program says last is why it failed


def compose(action: Json, subject: str | None, run: Snapshot) -> EmailMessage:
    """The message of an e-mail action. `subject`, its template expanded; None: the usual one.

    Raises ValueError: no addresses.
    """
    message = EmailMessage()
    name = instance(run.job_id, run.args)
    message["Subject"] = " ".join((subject or f"{run.run_id} {name}: {run.state}").split())
    message["From"] = action["from"]
    message["To"] = ", ".join(action["to"])
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="apsis")
    message["Auto-Submitted"] = "auto-generated"  # or out-of-office replies come back
    lines = [f"run: {run.run_id}", f"job: {name}", f"state: {run.state}"]
    if run.labels:
        lines.append(f"labels: {', '.join(run.labels)}")
    lines += ["", *(f"{stamp(time)} {text}" for time, text in run.log())]
    try:
        output = run.output(TAIL)
    except Unavailable:
        raise
    except ApsisError as error:  # its bytes are damaged; that the run failed is to be told all the same
        output = b""
        lines += ["", str(error)]
    if output:
        head = "output:" if len(output) < TAIL else f"the last {TAIL} bytes of output:"
        lines += ["", head, output.decode("utf-8", "replace")]
    message.set_content("\n".join(lines).replace("\r", "") + "\n")
    return message


def send(smtp: Smtp, message: EmailMessage) -> dict[str, str]:
    """Hand a message over to the mail server: why it refuses some of the addresses.

    Raises OSError and smtplib's errors: nobody gets it.
    """
    if smtp.ssl == "on":
        context = ssl.create_default_context()
        server: smtplib.SMTP = smtplib.SMTP_SSL(smtp.host, smtp.port, timeout=PATIENCE, context=context)
    else:
        server = smtplib.SMTP(
            smtp.host, smtp.port or (587 if smtp.ssl == "starttls" else 25), timeout=PATIENCE
        )
    try:
        if smtp.ssl == "starttls":
            server.starttls(context=ssl.create_default_context())
        if smtp.auth is not None:
            server.login(smtp.auth.username, smtp.auth.password)
        refused = server.send_message(message)
        with suppress(smtplib.SMTPException):  # it is on its way, however we part
            server.quit()
    finally:
        server.close()
    return {to: f"{code} {text.decode('utf-8', 'replace')}" for to, (code, text) in refused.items()}
