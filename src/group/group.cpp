#include "epistle/group.hpp"

#include <utility>

#include "group/group_impl.hpp"

namespace epistle {

Group::Group(std::shared_ptr<GroupImpl> impl) : impl_(std::move(impl)) {}
Group::~Group() = default;
Group::Group(Group&&) noexcept = default;
Group& Group::operator=(Group&&) noexcept = default;

int Group::rank() const noexcept { return impl_->rank(); }
int Group::size() const noexcept { return impl_->num_ranks(); }
GroupKind Group::kind() const noexcept { return impl_->kind(); }
std::chrono::milliseconds Group::timeout() const noexcept { return impl_->timeout(); }
int Group::domain_size() const noexcept { return impl_->domains().size(); }
int Group::gpu_domain_size() const noexcept { return impl_->gpu_domains().size(); }
int Group::num_domains() const noexcept { return impl_->domains().count(); }
int Group::domain_of(int rank) const noexcept { return impl_->domains().domain_of(rank); }
int Group::index_in_domain(int rank) const noexcept { return impl_->domains().index_of(rank); }
int Group::num_hosts() const noexcept { return impl_->num_hosts(); }
int Group::host_of(int rank) const noexcept { return impl_->host_of(rank); }
void Group::set_mask(const std::vector<int>& ranks) { impl_->set_mask(ranks); }
std::vector<int> Group::masked() const { return impl_->masked_ranks(); }
bool Group::is_masked(int rank) const noexcept { return impl_->is_masked(rank); }
std::vector<int> Group::suspects() const { return impl_->suspects(); }
void Group::barrier() { impl_->barrier(); }
void Group::all_gather(const void* input, std::size_t num_bytes, void* output) {
  impl_->all_gather(input, num_bytes, output);
}

}  // namespace epistle
