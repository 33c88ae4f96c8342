"""The module name deep_ep: importing it gives epistle.deep_ep, and its submodules under the same name."""

import epistle.deep_ep

epistle.deep_ep.install()
