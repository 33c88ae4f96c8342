// Memory that grows with what somebody else has written.
#pragma once

#include <cstddef>
#include <cstdint>

namespace epistle {

/// Grows by steps too small to ask for each: with a file that is read, say. Before a step it is asked whether as much
/// again as was taken so far is there, for what grows may have to move. Who asks the machine is src/topology.
class GrowingMemory {
 public:
  /// For the error: "`what` need ... bytes of memory", and `hint`, what would help.
  GrowingMemory(const char* what, const char* hint) noexcept : what_(what), hint_(hint) {}

  /// Throws kOutOfMemory, with the numbers, where so much is not to be had.
  void add(std::int64_t num_bytes) {
    taken_bytes_ += num_bytes;
    if (taken_bytes_ >= next_question_bytes_) ask();
  }

  /// Before something is put into `items`: adds what they take when they have to move.
  template <typename Items>
  void add_room_in(const Items& items) {
    if (items.size() != items.capacity()) return;
    add(static_cast<std::int64_t>((items.size() + 1) * sizeof(typename Items::value_type)));
  }

 private:
  void ask();

  static constexpr std::int64_t kQuestionBytes = std::int64_t{16} << 20;
  const char* what_;
  const char* hint_;
  std::int64_t taken_bytes_ = 0;
  std::int64_t next_question_bytes_ = kQuestionBytes;
};

}  // namespace epistle
