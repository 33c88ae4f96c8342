// An error that every rank of the group throws at the same step.
#pragma once

#include "epistle/error.hpp"

namespace epistle {

/// There is nobody left to tell of it.
class AgreedError final : public Error {
 public:
  using Error::Error;
  explicit AgreedError(const Error& error) : Error(error) {}
};

}  // namespace epistle
