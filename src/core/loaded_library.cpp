#include "core/loaded_library.hpp"

#include <utility>

#include <dlfcn.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/kept_signals.hpp"

namespace epistle {

LoadedLibrary::LoadedLibrary(std::string name, Symbols symbols) : name_(std::move(name)) {
  const KeptSignals signals;
  handle_ = ::dlopen(name_.c_str(), RTLD_NOW | (symbols == Symbols::kOwn ? RTLD_LOCAL : RTLD_GLOBAL));
  if (handle_ != nullptr) return;
  const char* const reason = ::dlerror();
  lack_ = reason != nullptr ? reason : "no reason given";
}

LoadedLibrary::~LoadedLibrary() {
  if (handle_ != nullptr) ::dlclose(handle_);
}

void* LoadedLibrary::address_of(const char* name) const noexcept {
  // Without a library dlsym would look in the program.
  return handle_ != nullptr ? ::dlsym(handle_, name) : nullptr;
}

void LoadedLibrary::require_loaded(std::string_view purpose, std::string_view advice) const {
  if (lack_.empty()) return;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("{}, but '{}' cannot be loaded ({}); {}", purpose, name_, lack_, advice));
}

void LoadedLibrary::throw_without(const char* name, std::string_view advice) const {
  throw Error(ErrorCode::kUnsupported,
              fmt::format("'{}' has no function {}, so it is another library, or too old; {}", name_, name, advice));
}

}  // namespace epistle
