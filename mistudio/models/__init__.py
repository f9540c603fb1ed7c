from mistudio.models.activation_cache import ActivationCache
from mistudio.models.artifact import Artifact
from mistudio.models.dataset import Dataset, DatasetPart
from mistudio.models.evaluation import Evaluation
from mistudio.models.export import Export
from mistudio.models.feature import Feature
from mistudio.models.hub_token import HubToken
from mistudio.models.language_model import LanguageModel
from mistudio.models.sae import Sae
from mistudio.models.scan import Scan
from mistudio.models.team import Membership, Team, User
from mistudio.models.template import Template
from mistudio.models.tokenization import Tokenization
from mistudio.models.training import CacheShare, Training
from mistudio.models.upload import Upload

ARTIFACTS: tuple[type[Artifact], ...] = (
    *(LanguageModel, Dataset, Tokenization, ActivationCache, Training, Sae, Scan, Evaluation, Export),
)

__all__ = [
    "ARTIFACTS",
    "ActivationCache",
    "Artifact",
    "CacheShare",
    "Dataset",
    "DatasetPart",
    "Evaluation",
    "Export",
    "Feature",
    "HubToken",
    "LanguageModel",
    "Membership",
    "Sae",
    "Scan",
    "Team",
    "Template",
    "Tokenization",
    "Training",
    "Upload",
    "User",
]
