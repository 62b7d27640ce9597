"""From a folder on disk to samples: one module a layout, and a detection that explains itself.

A new layout is one module with a class that fits :class:`~flawsmith.data.layouts.registry.Layout`, registered
below: the specific ones first, the plain folder last.
"""

from flawsmith.data.layouts.btad import BtadLayout
from flawsmith.data.layouts.csv_table import CsvLayout
from flawsmith.data.layouts.detection import detect, load
from flawsmith.data.layouts.folder import FolderLayout
from flawsmith.data.layouts.ksdd2 import Ksdd2Layout
from flawsmith.data.layouts.magnetic_tile import MagneticTileLayout
from flawsmith.data.layouts.mvtec import MvtecLayout
from flawsmith.data.layouts.mvtec_3d import Mvtec3dLayout
from flawsmith.data.layouts.mvtec_loco import MvtecLocoLayout
from flawsmith.data.layouts.registry import Layout, by_name, known, register
from flawsmith.data.layouts.visa import VisaLayout

register(MvtecLocoLayout())
register(BtadLayout())
register(MvtecLayout())
register(Mvtec3dLayout())
register(VisaLayout())
register(MagneticTileLayout())
register(Ksdd2Layout())
register(CsvLayout())
register(FolderLayout())

__all__ = ["Layout", "by_name", "detect", "known", "load", "register"]
