// What a caller above the library knows to be wrong with a call. A language binding checks tensors that no view can
// describe; it makes the call with views that are refused, and the reason goes to the other ranks in place of that.
#pragma once

#include <string>
#include <utility>

namespace epistle {

class CallerComplaint {
 public:
  /// Of the calls that this thread makes as long as it lives; empty: none. `text` must live as long.
  explicit CallerComplaint(const std::string& text) noexcept
      : before_(std::exchange(slot(), text.empty() ? nullptr : &text)) {}
  ~CallerComplaint() { slot() = before_; }
  CallerComplaint(const CallerComplaint&) = delete;
  CallerComplaint& operator=(const CallerComplaint&) = delete;

  /// Null where there is none.
  [[nodiscard]] static const std::string* current() noexcept { return slot(); }

 private:
  static const std::string*& slot() noexcept {
    thread_local const std::string* text = nullptr;
    return text;
  }

  const std::string* before_;
};

}  // namespace epistle
