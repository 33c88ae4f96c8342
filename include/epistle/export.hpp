// What the shared library exports. Everything is hidden unless it is marked: a function and a class whose members are
// defined in the library, or whose type crosses the boundary of the library (exceptions, virtual functions).
#pragma once

/// Stands before a function's type and behind `class` or `struct`. In a static library it changes nothing for a
/// program; a shared library that holds one, and does not want to pass its symbols on, defines it to nothing.
#if !defined(EPISTLE_API)
#define EPISTLE_API __attribute__((visibility("default")))
#endif
