from demo.predictor import Hand as Hand
from demo.predictor import HandPredictor as HandPredictor
from demo.predictor import PhotoHands as PhotoHands

__version__: str
COMMANDS: dict[str, str]
