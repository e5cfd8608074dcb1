"""The data sets of the recipes: readers of the official files, and one pipeline of batches.

Nothing is downloaded: `load(folder, ...)` reads what lies in a folder, in its published form,
and says where to get what is missing. What comes of it is [`Splits`][]; an example is a tuple
`(x, y)` of NumPy arrays, channels first, without a batch axis.

| module | data set | official files | where |
| --- | --- | --- | --- |
| `cifar` | CIFAR-10, CIFAR-100; Image of LRA | `cifar-10-binary.tar.gz` and the like, packed or not | <https://www.cs.toronto.edu/~kriz/cifar.html> |
| `mnist` | MNIST; sequential and permuted | `train-images-idx3-ubyte.gz` and three more | <https://yann.lecun.org/exdb/mnist/>, <https://ossci-datasets.s3.amazonaws.com/mnist/> |
| `ucr` | UCR archive 2018 | `NAME/NAME_TRAIN.tsv`, `NAME/NAME_TEST.tsv` | <https://www.cs.ucr.edu/~eamonn/time_series_data_2018/> |
| `imdb` | Text of LRA; a stand-in for Retrieval | `aclImdb_v1.tar.gz`, packed or not | <https://ai.stanford.edu/~amaas/data/sentiment/> |
| `listops` | ListOps of LRA | `basic_train.tsv`, `basic_val.tsv`, `basic_test.tsv` | LRA release, `listops-1000` |
| `aan` | Retrieval of LRA | `new_aan_pairs.train.tsv`, `.eval.tsv`, `.test.tsv` | LRA release, `tsv_data` |
| `pathfinder` | Pathfinder and Path-X of LRA | `curv_contour_length_14/{imgs,metadata}` | LRA release, `pathfinder32` to `pathfinder256` |
| `darcy` | DarcyFlow of NAS-Bench-360 | `piececonst_r421_N1024_smooth1.mat`, `..._smooth2.mat` | <https://pde-xd.s3.amazonaws.com/> |
| `cosmic` | Cosmic of NAS-Bench-360 | `npy_train/`, `npy_test/` of `deepCR.ACS-WFC.{train,test}.tar` | <https://pde-xd.s3.amazonaws.com/cosmic/> |
| `membranes` | ISBI 2012, electron micrographs | `train-volume.tif`, `train-labels.tif` | <https://imagej.net/events/isbi-2012-segmentation-challenge> |

The LRA release is <https://storage.googleapis.com/long-range-arena/lra_release.gz>, a gzipped
tar of 8 GB.
"""  # noqa: E501

from ._pipeline import batches as batches
from ._source import (
    Arrays as Arrays,
    Images as Images,
    Source as Source,
    Splits as Splits,
    Subset as Subset,
    take as take,
)
