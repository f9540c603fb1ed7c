from django.contrib import admin
from django.urls import include, path

from mistudio.views import (
    account,
    dataset,
    feature,
    home,
    hub,
    hub_token,
    language_model,
    sae,
    shell,
    template,
    tokenization,
    training,
)

urlpatterns = [
    path("", home.home, name="home"),
    path("login/", account.login, name="login"),
    path("login/<str:user_key>/<str:token>/", account.login_link, name="login_link"),
    path("logout/", account.logout, name="logout"),
    path("account/", hub_token.account, name="account"),
    path("account/hub-token/", hub_token.hubtoken_store, name="hubtoken_store"),
    path("account/hub-token/remove/", hub_token.hubtoken_remove, name="hubtoken_remove"),
    path("account/hub-token/check/", hub_token.hubtoken_check, name="hubtoken_check"),
    path("theme/", shell.theme, name="theme"),
    path("hub/<str:kind>/", hub.preview, name="hub_preview"),
    path("models/", language_model.languagemodels, name="languagemodels"),
    path("models/new/", language_model.languagemodel_new, name="languagemodel_new"),
    path("models/<int:pk>/", language_model.languagemodel, name="languagemodel"),
    path("models/<int:pk>/delete/", language_model.languagemodel_delete, name="languagemodel_delete"),
    path("datasets/", dataset.datasets, name="datasets"),
    path("datasets/new/", dataset.dataset_new, name="dataset_new"),
    path("datasets/mix/", dataset.mixture_new, name="mixture_new"),
    path("datasets/<int:pk>/", dataset.dataset, name="dataset"),
    path("datasets/<int:pk>/delete/", dataset.dataset_delete, name="dataset_delete"),
    path("tokenizations/", tokenization.tokenizations, name="tokenizations"),
    path("tokenizations/new/", tokenization.tokenization_new, name="tokenization_new"),
    path("tokenizations/<int:pk>/", tokenization.tokenization, name="tokenization"),
    path("tokenizations/<int:pk>/delete/", tokenization.tokenization_delete, name="tokenization_delete"),
    path("trainings/", training.trainings, name="trainings"),
    path("trainings/new/", training.training_new, name="training_new"),
    path("trainings/<int:pk>/", training.training, name="training"),
    path("trainings/<int:pk>/delete/", training.training_delete, name="training_delete"),
    path("saes/", sae.saes, name="saes"),
    path("saes/<int:pk>/", sae.sae, name="sae"),
    path("saes/<int:pk>/delete/", sae.sae_delete, name="sae_delete"),
    path("saes/<int:sae_pk>/scan/", sae.scan_new, name="scan_new"),
    path("saes/<int:sae_pk>/features/", feature.features, name="features"),
    path("saes/<int:sae_pk>/features/<int:index>/", feature.feature, name="feature"),
    path("saes/<int:sae_pk>/features/<int:index>/label/", feature.feature_label, name="feature_label"),
    path("scans/", sae.scans, name="scans"),
    path("scans/<int:pk>/", sae.scan, name="scan"),
    path("scans/<int:pk>/delete/", sae.scan_delete, name="scan_delete"),
    path("templates/", template.templates, name="templates"),
    path("templates/import/", template.template_import, name="templates_import"),
    path("templates/<int:pk>/export/", template.template_export, name="template_export"),
    path("templates/<int:pk>/favourite/", template.template_favourite, name="template_favourite"),
    path("templates/<int:pk>/delete/", template.template_delete, name="template_delete"),
    path("", include("jobs.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "mistudio.views.errors.bad_request"
handler403 = "mistudio.views.errors.forbidden"
handler404 = "mistudio.views.errors.not_found"
handler500 = "mistudio.views.errors.server_error"
