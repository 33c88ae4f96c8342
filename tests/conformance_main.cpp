// The conformance suite runs over the library's dispatchers and over one that the tests bring.
#include <gtest/gtest.h>

#include "support/mailbox.hpp"

int main(int argc, char** argv) {
  epistle::testing::register_mailbox();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
