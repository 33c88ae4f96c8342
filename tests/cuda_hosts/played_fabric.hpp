// An NVLink fabric that is played on one machine: memory travels as fabric handles, as far as this library can tell.
#pragma once

namespace epistle::testing {

/// From here on this process's GPUs can export memory as fabric handles, and import such of other processes that play,
/// too. A handle names a socket at which a thread of its process hands out the file descriptor that the driver has
/// given in place of it. Once per process, before memory is taken; what was exported is kept to the process's end.
void play_nvlink_fabric();

}  // namespace epistle::testing
