// A shared library that is loaded when it is first needed, and not linked: a machine without it runs everything else.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

namespace epistle {

class LoadedLibrary {
 public:
  enum class Symbols {
    kOwn,        ///< nobody else's names are looked up in it
    kForOthers,  ///< its own components look names up in it
  };

  /// Does not throw where there is no such library: see lack().
  explicit LoadedLibrary(std::string name, Symbols symbols = Symbols::kOwn);
  /// Closes it.
  ~LoadedLibrary();
  LoadedLibrary(const LoadedLibrary&) = delete;
  LoadedLibrary& operator=(const LoadedLibrary&) = delete;

  /// Why it could not be loaded; empty where it is.
  [[nodiscard]] const std::string& lack() const noexcept { return lack_; }

  /// Null where it has no function of that name.
  template <typename Function>
  void find(Function& function, const char* name) const noexcept {
    static_assert(std::is_pointer_v<Function>);
    function = reinterpret_cast<Function>(address_of(name));
  }

  /// Throws kUnsupported where it was not loaded: what `purpose` says, why, and what to do about it.
  void require_loaded(std::string_view purpose, std::string_view advice) const;
  /// Throws kUnsupported where it has no such function.
  template <typename Function>
  void require(Function& function, const char* name, std::string_view advice) const {
    find(function, name);
    if (function == nullptr) throw_without(name, advice);
  }

  /// From here on it is never closed: for libraries that have threads of their own.
  void stay() noexcept { handle_ = nullptr; }

 private:
  [[nodiscard]] void* address_of(const char* name) const noexcept;
  [[noreturn]] void throw_without(const char* name, std::string_view advice) const;

  std::string name_;
  void* handle_ = nullptr;
  std::string lack_;
};

}  // namespace epistle
