"""The layers and networks of the paper (Appx. B, E.1): a customer of the core."""

from ._blocks import Block as Block
from ._ccnn import CCNN as CCNN, paths as paths
from ._choices import Path as Path
from ._complexity import base_sizes as base_sizes, complexity as complexity
from ._dnarch import (
    axes as axes,
    Base as Base,
    buckets as buckets,
    CCNN_4_140 as CCNN_4_140,
    CCNN_6_380 as CCNN_6_380,
    deploy as deploy,
    depth_masks as depth_masks,
    dnarch as dnarch,
    kernel_masks as kernel_masks,
    resolution_masks as resolution_masks,
    width_masks as width_masks,
)
from ._encoder import Encoder as Encoder
from ._fourier import fourier_convolution as fourier_convolution, resize as resize
from ._kernel import (
    ContinuousConv as ContinuousConv,
    KernelGenerator as KernelGenerator,
)
from ._layers import BatchNorm as BatchNorm, PointwiseLinear as PointwiseLinear
from ._spatial import spatial_convolution as spatial_convolution
