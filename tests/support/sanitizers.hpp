// Which sanitizer this program is built with: instrumented code is slower, and some tests do not work under it.
#pragma once

namespace epistle::testing {

#if defined(__has_feature)
#define EPISTLE_HAS_FEATURE(name) __has_feature(name)
#else
#define EPISTLE_HAS_FEATURE(name) 0
#endif

#if defined(__SANITIZE_THREAD__) || EPISTLE_HAS_FEATURE(thread_sanitizer)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

#if defined(__SANITIZE_ADDRESS__) || EPISTLE_HAS_FEATURE(address_sanitizer)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

#undef EPISTLE_HAS_FEATURE

/// Where the same code goes through ever more data, less of it will do: a sanitizer looks at accesses, not at values.
inline constexpr bool kInstrumented = kThreadSanitizer || kAddressSanitizer;

}  // namespace epistle::testing
