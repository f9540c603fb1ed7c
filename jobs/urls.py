from django.urls import path

from jobs import operations, views

urlpatterns = [
    path("operations/", operations.operations, name="operations"),
    path("operations/failures/dismiss/", operations.failures_dismiss, name="failures_dismiss"),
    path("operations/queues/<str:name>/pause/", operations.queue_pause, name="queue_pause"),
    path("operations/queues/<str:name>/resume/", operations.queue_resume, name="queue_resume"),
    path("jobs/", views.jobs, name="jobs"),
    path("jobs/<int:pk>/", views.job, name="job"),
    path("jobs/<int:pk>/log/", views.job_log, name="job_log"),
    path("jobs/<int:pk>/cancel/", views.job_cancel, name="job_cancel"),
    path("jobs/<int:pk>/pause/", views.job_pause, name="job_pause"),
    path("jobs/<int:pk>/resume/", views.job_resume, name="job_resume"),
    path("jobs/<int:pk>/finish/", views.job_finish, name="job_finish"),
    path("jobs/<int:pk>/retry/", views.job_retry, name="job_retry"),
    path("jobs/<int:pk>/order/", views.job_order, name="job_order"),
    path("jobs/<int:pk>/dismiss/", views.job_dismiss, name="job_dismiss"),
    path("live/fragments/", views.fragments, name="live_fragments"),
]
