"""The paper's parts as modules: they import torch only and take plain arguments."""

from exfuse.layers.channel_resolution_embedding import ChannelResolutionEmbedding
from exfuse.layers.densely_adjacent_prediction import DenselyAdjacentPrediction, PlainPrediction
from exfuse.layers.global_convolution import BoundaryRefinement, GlobalConvolution
from exfuse.layers.semantic_embedding import SemanticEmbeddingBranch
from exfuse.layers.upsampling import BilinearDeconvolution

__all__ = [
    "BilinearDeconvolution",
    "BoundaryRefinement",
    "ChannelResolutionEmbedding",
    "DenselyAdjacentPrediction",
    "GlobalConvolution",
    "PlainPrediction",
    "SemanticEmbeddingBranch",
]
