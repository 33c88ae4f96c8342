#include "epistle/version.hpp"

// Qualified: the inline namespace has the version in its name.
int epistle::library_version() noexcept { return EPISTLE_VERSION; }
