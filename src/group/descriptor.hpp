// File descriptors with an owner. None of them is ever 0, 1 or 2: a program that was started with a closed standard
// stream would print into whatever the library opened there.
#pragma once

#include <cerrno>

namespace epistle {

/// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int release() noexcept;
  void reset() noexcept;

 private:
  int fd_ = -1;
};

/// Owns `fd`, under a number above those of the standard streams. Invalid, with errno set, where `fd` is or where there
/// is no other number left.
[[nodiscard]] UniqueFd own_descriptor(int fd) noexcept;

/// Another descriptor of the same file, closed on exec. Invalid, with errno set, on failure.
[[nodiscard]] UniqueFd duplicate(int fd) noexcept;

/// The result of a system call that returns -1 on failure, made again when a signal interrupts it; not for ever.
template <typename SystemCall>
[[nodiscard]] auto retry_interrupted(const SystemCall& call) {
  constexpr int kMaxTries = 10'000;
  auto result = call();
  for (int num_tries = 1; result < 0 && errno == EINTR && num_tries < kMaxTries; ++num_tries) result = call();
  return result;
}

/// What to do, to be put behind a message, where `error` says that there are too many descriptors; else nothing.
[[nodiscard]] const char* descriptor_hint(int error) noexcept;

}  // namespace epistle
