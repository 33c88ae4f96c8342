// Streams between hosts: a socket that is connected to itself is none.
#include <cerrno>
#include <chrono>

#include <sys/socket.h>

#include <gtest/gtest.h>

#include "group/net/stream.hpp"

namespace epistle {
namespace {

Deadline soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(5); }

TEST(Streams, ASocketThatWasGivenThePortItGoesToIsItsOwnPeer) {
  // As connect() may choose it where nobody listens there.
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const SocketAddress any = resolve({"127.0.0.1", 1}).with_port(0);
  ASSERT_EQ(::bind(socket.get(), any.get(), any.size()), 0);
  const SocketAddress own = own_address(socket.get());
  ASSERT_EQ(::connect(socket.get(), own.get(), own.size()), 0);
  EXPECT_TRUE(is_its_own_peer(socket.get()));
}

TEST(Streams, AConnectionToAnotherIsNot) {
  const UniqueFd listener = listen_at(resolve({"127.0.0.1", 1}).with_port(0));
  const UniqueFd socket = connect_to(own_address(listener.get()), soon());
  ASSERT_TRUE(socket.valid());
  EXPECT_FALSE(is_its_own_peer(socket.get()));
  EXPECT_FALSE(is_its_own_peer(listener.get()));
}

TEST(Streams, WhereNobodyListensTheConnectionIsRefused) {
  const SocketAddress address = own_address(listen_at(resolve({"127.0.0.1", 1}).with_port(0)).get());
  EXPECT_FALSE(connect_to(address, soon()).valid());
  EXPECT_EQ(errno, ECONNREFUSED);
}

}  // namespace
}  // namespace epistle
