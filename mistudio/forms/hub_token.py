import re

from django import forms

TOKEN = re.compile(r"[A-Za-z0-9_.-]{8,200}")


class HubTokenForm(forms.Form):
    """Write-only: the field is never filled in, not even after a mistake."""

    token = forms.CharField(
        label="Token",
        strip=True,
        max_length=300,
        help_text="From huggingface.co/settings/tokens. One that may only read is enough.",
        widget=forms.PasswordInput(attrs={"autocomplete": "off", "spellcheck": "false"}, render_value=False),
    )

    def clean_token(self) -> str:
        token = self.cleaned_data["token"]
        if not TOKEN.fullmatch(token):
            raise forms.ValidationError("This is no token: it has 8 to 200 letters, digits, _, . or -. Paste it whole.")
        return token
