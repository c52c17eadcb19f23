"""Why a server refuses a login, in plain words: the one table of causes and remedies, by the provider's own texts.

`explain_login` looks a reply to AUTH up in REFUSALS, first match wins: by code, enhanced code, text, host, and whether
an access token or a password was presented. The last rows go by the code alone (RFC 4954 section 6). The account's
pause and the check of an account both say what stands here; whose fault it is and for how long the account rests is
blame.py's question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.domain.reply import Reply

SEARCHED_CHARS = 1000  # of a reply's text: what counts stands at its beginning, and a server may say a lot
_MICROSOFT = r"(^|\.)(office365\.com|outlook\.com|office\.com)$"
_GOOGLE = r"(^|\.)(gmail\.com|google\.com|googlemail\.com)$"
_SES = r"^email-smtp(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$"
_AZURE = r"(^|\.)azurecomm\.net$"

_XOAUTH2 = "log in with XOAUTH2 (auth xoauth2)"


@dataclass(frozen=True, slots=True)
class LoginRefusal:
    """`code` is stable; `cause` and `remedy` are sentences for a person."""

    code: str
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row: regular expressions of code, enhanced code, text and host (None: any), and what was presented."""

    codes: str
    enhanced: str | None
    text: str | None
    refusal: LoginRefusal
    host: str | None = None
    by_token: bool | None = None

    def matches(self, reply: Reply, host: str, *, by_token: bool) -> bool:
        """Whether this row is about that reply."""
        text = reply.text[:SEARCHED_CHARS]
        return (
            re.fullmatch(self.codes, str(reply.code)) is not None
            and (self.enhanced is None or re.fullmatch(self.enhanced, reply.enhanced_code or "") is not None)
            and (self.text is None or re.search(self.text, text, re.IGNORECASE) is not None)
            and (self.host is None or re.search(self.host, host) is not None)
            and (self.by_token is None or self.by_token is by_token)
        )


# --- Microsoft 365: 535 5.7.139 has four causes, and says which only in its text ---

_TENANT_OFF = LoginRefusal(
    "smtp_auth_off_for_tenant",
    "SMTP AUTH is switched off for the whole Microsoft 365 tenant.",
    "Its administrator switches it on for this mailbox alone, which counts more: Set-CASMailbox MAILBOX "
    "-SmtpClientAuthenticationDisabled $false; or for all: Set-TransportConfig -SmtpClientAuthenticationDisabled "
    "$false. It takes up to an hour; then resume the account.",
)
_MAILBOX_OFF = LoginRefusal(
    "smtp_auth_off_for_mailbox",
    "SMTP AUTH is switched off for this mailbox.",
    "The tenant's administrator switches it on: admin center, Active users, the user, Mail, Manage email apps, "
    "Authenticated SMTP; or Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false. It takes up to an hour; "
    "then resume the account.",
)
_SECURITY_DEFAULTS = LoginRefusal(
    "blocked_by_security_defaults",
    "The security defaults of the Microsoft tenant forbid logins with a password.",
    f"Have MPU {_XOAUTH2}; or the tenant's administrator turns security defaults off in Entra (Properties) and "
    "protects the users by Conditional Access instead.",
)
_CONDITIONAL_ACCESS = LoginRefusal(
    "blocked_by_policy",
    "A policy of the Microsoft tenant (Conditional Access, security defaults or an authentication policy) forbids this "
    "login.",
    "The tenant's administrator finds the policy in Entra's sign-in log of this user and exempts him from it; or have "
    f"MPU {_XOAUTH2}.",
)
_BASIC_OFF = LoginRefusal(
    "basic_authentication_off",
    "Microsoft takes no password here any more: basic authentication is off for this account.",
    f"Have MPU {_XOAUTH2}. Only where the tenant still may: its administrator allows basic authentication for SMTP in "
    "the user's authentication policy.",
)
_LOCKED = LoginRefusal(
    "account_locked",
    "The user is locked or disabled, or his password has expired.",
    "The administrator unlocks the user or sets a new password; enter that as the account's password.",
)
_MICROSOFT_CREDENTIALS = LoginRefusal(
    "credentials_incorrect",
    "User name or password is wrong. Microsoft says the same where the user must confirm his logins (MFA).",
    "Check both by signing in at outlook.office.com: the username is the full sign-in address, which may differ from "
    f"the mail address. With MFA {_XOAUTH2}, or use an app password.",
)
_MICROSOFT_ANY = LoginRefusal(
    "login_refused_by_microsoft",
    "Microsoft refuses the login and does not say why: SMTP AUTH is off for the tenant or the mailbox, a policy "
    "forbids it, basic authentication is off, or the password is wrong.",
    f"Look into Entra's sign-in log of this user, it has the cause; {_XOAUTH2} is the way that lasts.",
)
_MICROSOFT_TOKEN = LoginRefusal(
    "token_refused_by_microsoft",
    "Microsoft takes the token for no login to this mailbox.",
    "With client credentials: give the application SMTP.SendAsApp with admin consent, register it in Exchange "
    "(New-ServicePrincipal) and let it into the mailbox (Add-MailboxPermission). With a user's token: scope SMTP.Send. "
    "In both cases SMTP AUTH must be on for the mailbox, and username must be its address.",
)

# --- others ---

_GOOGLE_APP_PASSWORD = LoginRefusal(
    "app_password_needed",
    "Google wants an app password: the user has two-step verification, and his own password is not taken here.",
    "Make one at myaccount.google.com/apppasswords and enter it as the account's password; or " + _XOAUTH2 + ".",
)
_GOOGLE_BROWSER = LoginRefusal(
    "browser_login_needed",
    "Google finds the login suspicious and wants the user to sign in with a browser first.",
    "Sign in once as this user and confirm that it was you; then use an app password "
    f"(myaccount.google.com/apppasswords) or {_XOAUTH2}.",
)
_GOOGLE_CREDENTIALS = LoginRefusal(
    "credentials_incorrect",
    "User name or password is wrong. Google takes app passwords here, never the user's own password.",
    "Turn two-step verification on, make an app password at myaccount.google.com/apppasswords and enter it; the "
    "username is the full address. A changed Google password ends all app passwords.",
)
_GOOGLE_TOKEN = LoginRefusal(
    "token_refused_by_google",
    "Google takes the token for no login as this user.",
    "The scope must be https://mail.google.com/ and username the address of the user who agreed to it; a service "
    "account needs domain-wide delegation for that scope.",
)
_SES_CREDENTIALS = LoginRefusal(
    "credentials_incorrect",
    "Amazon SES does not know these SMTP credentials.",
    "Make SMTP credentials in the SES console, in the region of the host name. AWS access keys are none, and those of "
    "another region don't count. New ones work after some minutes.",
)
_AZURE_CREDENTIALS = LoginRefusal(
    "credentials_incorrect",
    "Azure Communication Services does not take user name or password.",
    "The username is the SMTP username of the resource (or RESOURCE.APPLICATION-ID.TENANT-ID), the password a client "
    "secret of that Entra application, which expires; the application needs the role to send on the resource.",
)
_TOO_MANY = LoginRefusal(
    "too_many_logins",
    "Too many logins, or too many wrong ones: the provider makes this user wait.",
    "Wait; correct the password first, if it is wrong. Let no other program log in over and over.",
)
_CREDITS = LoginRefusal(
    "plan_used_up",
    "The provider's plan is used up.",
    "Wait for the next period, or buy more at the provider.",
)
_DISABLED = LoginRefusal(
    "account_disabled",
    "The provider has disabled or locked this user.",
    "Ask the provider, or sign in at its web page to see why; then resume the account.",
)
_TRANSITION = LoginRefusal(
    "password_transition_needed",
    "The server must take the password once in the clear before it can use this mechanism (RFC 4954 section 4.7.12).",
    "Set auth to plain, over TLS.",
)
_WEAK = LoginRefusal(
    "mechanism_too_weak",
    "The server finds this way to log in too weak, or wants an app password.",
    f"Set auth to another mechanism that the server offers, or {_XOAUTH2}.",
)
_ENCRYPTION = LoginRefusal(
    "encryption_needed",
    "The server takes logins only under TLS.",
    "Set security to starttls (port 587) or tls (port 465).",
)
_MECHANISM = LoginRefusal(
    "mechanism_not_taken",
    "The server does not know this way to log in.",
    "Set auth to a mechanism that the server offers (see the step extensions of the check), or to none where it wants "
    "no login.",
)
_TOKEN = LoginRefusal(
    "token_refused",
    "The server does not take the access token.",
    "Check scope and user of the token: it must be this account's username.",
)
_CREDENTIALS = LoginRefusal(
    "credentials_incorrect",
    "User name or password is wrong.",
    "Check both. Some providers want the full address as username, many an app password in place of the user's own.",
)
_LATER = LoginRefusal(
    "login_deferred",
    "The server can't check logins at the moment.",
    "Nothing to do: MPU tries again by itself.",
)
_REFUSED = LoginRefusal(
    "login_refused",
    "The server refuses the login.",
    "The server's words say why; ask the provider where they don't.",
)

_139 = r"5\.7\.139"

REFUSALS: tuple[Row, ...] = (
    # Microsoft
    Row("535", _139, r"SmtpClientAuthentication is disabled for the tenant", _TENANT_OFF),
    Row("535", _139, r"SmtpClientAuthentication is disabled for the mailbox", _MAILBOX_OFF),
    Row("535", _139, r"security defaults", _SECURITY_DEFAULTS),
    Row("535", _139, r"conditional access|did not meet the criteria|policy", _CONDITIONAL_ACCESS),
    Row("535", _139, r"basic authentication is (disabled|not)", _BASIC_OFF),
    Row("535", _139, r"locked|disabled|blocked|expired", _LOCKED),
    Row("535", _139, None, _MICROSOFT_TOKEN, by_token=True),
    Row("535", _139, r"credentials were incorrect", _MICROSOFT_CREDENTIALS),
    Row("535", _139, None, _MICROSOFT_ANY),
    Row("550", r"5\.7\.30", None, _BASIC_OFF),
    Row("535", r"5\.7\.3", None, _AZURE_CREDENTIALS, host=_AZURE),
    Row("535", r"5\.7\.3", None, _MICROSOFT_TOKEN, host=_MICROSOFT, by_token=True),
    Row("535", r"5\.7\.3", None, _MICROSOFT_ANY, host=_MICROSOFT),
    Row("535", None, None, _AZURE_CREDENTIALS, host=_AZURE),
    # Google
    Row("53[45]", None, r"application-specific password|InvalidSecondFactor", _GOOGLE_APP_PASSWORD),
    Row("53[45]", None, r"web browser|WebLoginRequired", _GOOGLE_BROWSER),
    Row("535", r"5\.7\.(8|1)", r"username and password not accepted|BadCredentials", _GOOGLE_TOKEN, by_token=True),
    Row("535", None, None, _GOOGLE_TOKEN, host=_GOOGLE, by_token=True),
    Row("535", r"5\.7\.(8|1)", r"username and password not accepted|BadCredentials", _GOOGLE_CREDENTIALS),
    # Amazon
    Row("535", None, None, _SES_CREDENTIALS, host=_SES),
    # anybody (RFC 4954 section 6)
    Row("4..|5..", None, r"too many (bad |failed |invalid )?(auth|login)", _TOO_MANY),
    Row("4..|5..", None, r"credits exceeded", _CREDITS),
    Row("525", None, None, _DISABLED),
    Row("5..", r"5\.7\.13", None, _DISABLED),
    Row("5..", None, r"(account|user|mailbox)\b.{0,60}\b(locked|disabled|suspended|blocked)", _DISABLED),
    Row("432", None, None, _TRANSITION),
    Row("530|538", None, r"starttls|encrypt", _ENCRYPTION),
    Row("538", None, None, _ENCRYPTION),
    Row("5..", r"5\.7\.11", None, _ENCRYPTION),
    Row("534", None, None, _WEAK),
    Row("50[0-5]", None, None, _MECHANISM),
    Row("535", None, None, _TOKEN, by_token=True),
    Row("535", None, None, _CREDENTIALS),
    Row("4..", None, None, _LATER),
)


def explain_login(reply: Reply, *, host: str = "", by_token: bool = False) -> LoginRefusal:
    """The probable cause of a 4xx or 5xx reply to AUTH. `host`: the server's name; `by_token`: not with a password."""
    name = host.rstrip(".").lower()
    for row in REFUSALS:
        if row.matches(reply, name, by_token=by_token):
            return row.refusal
    return _REFUSED
