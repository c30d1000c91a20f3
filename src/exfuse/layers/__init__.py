"""The paper's parts as modules; they import only torch and accept plain arguments."""

from exfuse.layers.channel_resolution_embedding import ChannelResolutionEmbedding
from exfuse.layers.densely_adjacent_prediction import DapControlConv, DenselyAdjacentPrediction
from exfuse.layers.global_convolution import BoundaryRefinement, GlobalConvolution
from exfuse.layers.semantic_embedding import SemanticEmbeddingBranch
from exfuse.layers.upsampling import LearnedUpsample

__all__ = [
    "BoundaryRefinement",
    "ChannelResolutionEmbedding",
    "DapControlConv",
    "DenselyAdjacentPrediction",
    "GlobalConvolution",
    "LearnedUpsample",
    "SemanticEmbeddingBranch",
]
