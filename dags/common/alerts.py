"""Who is told of a failed task or a missed deadline: the log always, e-mail and webhook as `alerts` of the YAML says.

Secrets are Airflow's: e-mail goes through the connection `smtp_default`, a webhook is the name of a connection whose
host is the URL. Airflow denies a deadline's callback what is in its database, so these connections, and the variable
that names the YAML, have to be in the environment (AIRFLOW_CONN_..., AIRFLOW_VAR_LAKEREC_CONFIG).
"""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path
from typing import Any

from common.rules import ERRORS, exit_code, page, page_of_late

log = logging.getLogger(__name__)
BACKFILL = "backfill"  # its days are late by nature


def task_failed(context: Any) -> None:
    """A task has failed for good: which one, of which run, why, and where its log is."""
    ti = context["ti"]
    error = str(context.get("exception") or "the task's process ended without a word").strip()
    why, code = error.splitlines()[-1], exit_code(error)
    why += "" if code is None or code in ERRORS else f" (exit code {code})"
    tell(f"{ti.dag_id}.{ti.task_id} failed", f"run {ti.run_id}\n{why}\nlog {ti.log_url}\nwhat to do: {page(error)}")


def deadline_missed(context: Any) -> None:
    """A run is not done in time."""
    run = context["dag_run"]
    if run["run_type"] != BACKFILL:
        due = context["deadline"]["deadline_time"]
        text = f"run {run['dag_run_id']} should have ended by {due}\nwhat to do: {page_of_late(run['dag_id'])}"
        tell(f"{run['dag_id']} is late", text)


def tell(subject: str, text: str) -> None:
    """Write to the log, then to whoever the configuration names; one way that is closed does not close the others."""
    log.error("ALERT %s\n%s", subject, text)
    try:
        known = settings()
    except Exception:
        log.exception("the alert could not be sent: the YAML that the variable lakerec_config names cannot be read")
        return
    for way, send in (("email", mail), ("webhook", post)):
        try:
            if known.get(way):
                send(known[way], subject, text)
        except Exception:
            log.exception("the alert could not be sent by %s", way)


def settings() -> dict[str, Any]:
    """The section `alerts` of the deployment's YAML."""
    import yaml
    from airflow.sdk import Variable

    found = yaml.safe_load(Path(Variable.get("lakerec_config")).read_text(encoding="utf-8")).get("alerts")
    return found or {}


def mail(to: list[str], subject: str, text: str) -> None:
    """By the connection smtp_default."""
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    with SmtpHook() as hook:
        hook.send_email_smtp(to=to, subject=f"lakerec: {subject}", html_content=f"<pre>{escape(text)}</pre>")


def post(connection: str, subject: str, text: str) -> None:
    """As JSON {"text": ...}, which Slack, Mattermost and Teams' workflows read, to the host of a connection."""
    import httpx
    from airflow.sdk import Connection
    from airflow.sdk.log import mask_secret

    url = Connection.get(connection).host
    mask_secret(url)  # a webhook's URL is its key
    try:
        answer = httpx.post(url, json={"text": f"{subject}\n{text}"}, timeout=15)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RuntimeError(f"the webhook {connection} did not answer ({type(error).__name__})") from None
    if answer.is_error:
        raise RuntimeError(f"the webhook {connection} answered {answer.status_code}")
