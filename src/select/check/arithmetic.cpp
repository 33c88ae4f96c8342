#include "select/check/arithmetic.hpp"

#include <cctype>
#include <charconv>
#include <cstddef>

namespace epistle::check {
namespace {

constexpr int kArithmeticMaxDepth = 64;

class Evaluator {
 public:
  Evaluator(std::string_view text, const LookUp& look_up) : text_(text), look_up_(look_up) {}

  std::optional<std::int64_t> run() {
    const std::int64_t value = sum(0);
    skip_spaces();
    if (failed_ || at_ != text_.size()) return std::nullopt;
    return value;
  }

 private:
  std::int64_t fail() {
    failed_ = true;
    return 0;
  }
  void skip_spaces() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
  }
  bool take(char wanted) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  std::int64_t sum(int depth) {
    std::int64_t value = product(depth);
    while (!failed_) {
      std::int64_t result = 0;
      if (take('+')) {
        if (__builtin_add_overflow(value, product(depth), &result)) return fail();
      } else if (take('-')) {
        if (__builtin_sub_overflow(value, product(depth), &result)) return fail();
      } else {
        return value;
      }
      value = result;
    }
    return 0;
  }

  std::int64_t product(int depth) {
    std::int64_t value = factor(depth);
    while (!failed_) {
      const bool times = take('*');
      const bool over = !times && take('/');
      if (!times && !over && !take('%')) return value;
      const std::int64_t right = factor(depth);
      std::int64_t result = 0;
      if (times) {
        if (__builtin_mul_overflow(value, right, &result)) return fail();
      } else {
        // The one quotient that does not fit goes with the one that there is not.
        if (right == 0 || right == -1) return fail();
        result = over ? value / right : value % right;
      }
      value = result;
    }
    return 0;
  }

  std::int64_t factor(int depth) {
    if (failed_ || depth > kArithmeticMaxDepth) return fail();
    if (take('(')) {
      const std::int64_t value = sum(depth + 1);
      return take(')') ? value : fail();
    }
    if (take('-')) {
      std::int64_t result = 0;
      return __builtin_sub_overflow(std::int64_t{0}, factor(depth + 1), &result) ? fail() : result;
    }
    return leaf();
  }

  std::int64_t leaf() {
    while (take('$') || take('{')) {
    }
    const std::size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_'))
      ++at_;
    const std::string_view word = text_.substr(begin, at_ - begin);
    while (take('}')) {
    }
    if (word.empty()) return fail();
    if (std::isdigit(static_cast<unsigned char>(word.front())) == 0) {
      const auto value = look_up_(word);
      return value ? *value : fail();
    }
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    return error == std::errc() && end == word.data() + word.size() ? value : fail();
  }

  std::string_view text_;
  const LookUp& look_up_;
  std::size_t at_ = 0;
  bool failed_ = false;
};

}  // namespace

std::optional<std::int64_t> evaluate_arithmetic(std::string_view text, const LookUp& look_up) {
  return Evaluator(text, look_up).run();
}

}  // namespace epistle::check
