"""From a folder on disk to samples: one module a layout, and a detection that explains itself.

A new layout is one module with a class that fits :class:`~flawsmith.data.layouts.base.Layout`, registered
below: the specific ones first, the plain folder last.
"""

from __future__ import annotations

from flawsmith.data.layouts.base import Layout, by_name, known, register
from flawsmith.data.layouts.detect import detect, load
from flawsmith.data.layouts.folder import FolderLayout
from flawsmith.data.layouts.masks_beside import Ksdd2Layout, MagneticTileLayout
from flawsmith.data.layouts.mvtec import BtadLayout, Mvtec3dLayout, MvtecLayout, MvtecLocoLayout
from flawsmith.data.layouts.table import CsvLayout
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
