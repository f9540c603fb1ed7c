from typing import Any

from django.contrib import auth
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlsafe_base64_decode, urlsafe_base64_encode
from django.views.decorators.http import require_GET, require_POST

from mistudio.models import User


class LoginLinks(PasswordResetTokenGenerator):
    """A link is signed over the last sign-in: using it, or any later sign-in, ends it. Valid for a day."""

    key_salt = "mistudio.login-link"

    def path(self, user: User) -> str:
        key = urlsafe_base64_encode(str(user.pk).encode())
        return reverse("login_link", args=[key, self.make_token(user)])

    def user(self, key: str, token: str) -> User | None:
        try:
            user = User.objects.get(pk=int(urlsafe_base64_decode(key)), is_active=True)
        except (ValueError, OverflowError, User.DoesNotExist):
            return None
        return user if self.check_token(user, token) else None


links = LoginLinks()
login: Any = LoginView.as_view(template_name="login.html", redirect_authenticated_user=True)


@login_not_required
@require_GET
def login_link(request: HttpRequest, user_key: str, token: str) -> HttpResponse:
    if request.user.is_authenticated:  # the same browser again: a reload, or a page fetched ahead
        return redirect("home")
    user = links.user(user_key, token)
    if user is None:
        return render(request, "login_link.html", status=410)
    auth.login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("home")


@require_POST
def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return redirect("login")
