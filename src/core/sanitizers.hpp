// Which sanitizer this code is built with; GCC and Clang say so in ways of their own.
#pragma once

namespace epistle {

#if defined(__has_feature)
#define EPISTLE_CLANG_FEATURE(name) __has_feature(name)
#else
#define EPISTLE_CLANG_FEATURE(name) 0
#endif

#if defined(__SANITIZE_THREAD__) || EPISTLE_CLANG_FEATURE(thread_sanitizer)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

#if defined(__SANITIZE_ADDRESS__) || EPISTLE_CLANG_FEATURE(address_sanitizer)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

#undef EPISTLE_CLANG_FEATURE

}  // namespace epistle
