from django.contrib import admin
from django.urls import include, path

from mistudio.views import account, dataset, feature, home, language_model, sae, shell, tokenization, training

urlpatterns = [
    path("", home.home, name="home"),
    path("login/", account.login, name="login"),
    path("login/<str:user_key>/<str:token>/", account.login_link, name="login_link"),
    path("logout/", account.logout, name="logout"),
    path("theme/", shell.theme, name="theme"),
    path("models/", language_model.languagemodels, name="languagemodels"),
    path("models/new/", language_model.languagemodel_new, name="languagemodel_new"),
    path("models/recommend/", language_model.recommendation, name="recommendation"),
    path("models/<int:pk>/verify/", language_model.languagemodel_verify, name="languagemodel_verify"),
    path("models/<int:pk>/restore/", language_model.languagemodel_restore, name="languagemodel_restore"),
    path("models/<int:pk>/measure/", language_model.languagemodel_measure, name="languagemodel_measure"),
    path("models/<int:pk>/note/", language_model.languagemodel_note, name="languagemodel_note"),
    path("models/<int:pk>/", language_model.languagemodel, name="languagemodel"),
    path("models/<int:pk>/delete/", language_model.languagemodel_delete, name="languagemodel_delete"),
    path("datasets/", dataset.datasets, name="datasets"),
    path("datasets/new/", dataset.dataset_new, name="dataset_new"),
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
    path("", include("jobs.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "mistudio.views.errors.bad_request"
handler403 = "mistudio.views.errors.forbidden"
handler404 = "mistudio.views.errors.not_found"
handler500 = "mistudio.views.errors.server_error"
