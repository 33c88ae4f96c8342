#include "core/growing_memory.hpp"

#include "topology/memory.hpp"

namespace epistle {

void GrowingMemory::ask() {
  next_question_bytes_ = taken_bytes_ + kQuestionBytes;
  require_memory(taken_bytes_, what_, hint_);
}

}  // namespace epistle
