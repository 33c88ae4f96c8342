// `mailbox`: a dispatcher that lives among the tests. Every rank lays its rows out, and the others fetch what is
// theirs: enough to show that a dispatcher is a folder of its own, entered by register_dispatcher.
#pragma once

namespace epistle::testing {

inline constexpr const char* kMailbox = "mailbox";

/// Enters it, once per process.
void register_mailbox();

}  // namespace epistle::testing
