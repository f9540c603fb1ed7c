from mistudio.models.artifact import Artifact
from mistudio.models.dataset import Dataset
from mistudio.models.feature import Feature
from mistudio.models.language_model import LanguageModel
from mistudio.models.sae import Sae
from mistudio.models.scan import Scan
from mistudio.models.team import Membership, Team, User
from mistudio.models.tokenization import Tokenization
from mistudio.models.training import Training
from mistudio.models.upload import Upload

ARTIFACTS: tuple[type[Artifact], ...] = (LanguageModel, Dataset, Tokenization, Training, Sae, Scan)

__all__ = [
    "ARTIFACTS",
    "Artifact",
    "Dataset",
    "Feature",
    "LanguageModel",
    "Membership",
    "Sae",
    "Scan",
    "Team",
    "Tokenization",
    "Training",
    "Upload",
    "User",
]
