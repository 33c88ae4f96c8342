#include "group/meeting_address.hpp"

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <thread>

#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

constexpr int kMaxSocketTries = 20;
constexpr std::chrono::milliseconds kSocketRetry{5};

// FNV-1a.
constexpr std::uint64_t kFnvOffset = 0xcbf29ce484222325;
constexpr std::uint64_t kFnvPrime = 0x100000001b3;

std::uint64_t hash_of(std::string_view text, std::uint64_t hash) {
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * kFnvPrime;
  return hash;
}

}  // namespace

MeetingAddress::MeetingAddress(const std::string& job) : job_check(hash_of(job, ~kFnvOffset)) {
  // Hashed to fit sun_path, whatever a launcher puts into a job name.
  const std::string text = fmt::format("epistle/{}/{:016x}", ::getuid(), hash_of(job, kFnvOffset));
  name.sun_family = AF_UNIX;
  // A leading NUL selects the abstract namespace.
  std::memcpy(name.sun_path + 1, text.data(), text.size());
  name_bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
}

UniqueFd open_socket(int type) {
  for (int num_tries = 1;; ++num_tries) {
    UniqueFd socket = own_descriptor(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (socket.valid()) return socket;
    const int error = errno;
    if (!is_shortage(error) || num_tries == kMaxSocketTries) {
      throw Error(ErrorCode::kSystem, fmt::format("socket failed: {}{}", std::strerror(error), descriptor_hint(error)),
                  {.phase = Phase::kRendezvous});
    }
    std::this_thread::sleep_for(kSocketRetry);
  }
}

std::optional<bool> is_same_user(int socket) noexcept {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return std::nullopt;
  return peer.uid == ::getuid();
}

bool is_shortage(int error) noexcept {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM || error == EINTR || error == EAGAIN;
}

}  // namespace epistle
