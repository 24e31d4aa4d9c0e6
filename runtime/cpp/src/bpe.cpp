// Byte pair encoding: merges the pair with the lowest rank, leftmost first, until no pair can be merged.
#include <queue>
#include <unordered_map>

#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

class Bpe {
public:
    explicit Bpe(const Json& settings) {
        if (!settings.at("dropout").is_null()) refuse("BPE with dropout");
        if (settings.value("byte_fallback", false)) refuse("BPE with byte fallback");
        fuse_unknown = settings.value("fuse_unk", false);
        ignore_merges = settings.value("ignore_merges", false);
        const auto text = [&settings](const char* name) {
            return settings.at(name).is_string() ? settings.at(name).get<std::string>() : std::string();
        };
        prefix = text("continuing_subword_prefix");
        suffix = text("end_of_word_suffix");
        for (const auto& [token, id] : settings.at("vocab").items()) vocab.emplace(token, id.get<std::uint32_t>());
        if (settings.at("unk_token").is_string()) unknown = vocab.at(text("unk_token"));
        std::uint32_t rank = 0;
        for (const Json& merge : settings.at("merges")) {
            const auto [left, right] = halves(merge);
            const std::uint32_t both = vocab.at(left + right.substr(std::min(prefix.size(), right.size())));
            merges[pair(vocab.at(left), vocab.at(right))] = {rank++, both};
        }
    }

    void operator()(const Text& word, Ids& ids) const {
        if (ignore_merges) {
            const auto whole = vocab.find(unicode::encode(word));
            if (whole != vocab.end()) return ids.push_back(whole->second);
        }
        std::vector<Symbol> symbols = characters(word);
        merge_all(symbols);
        for (const Symbol& each : symbols)
            if (each.alive) ids.push_back(each.id);
    }

private:
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    struct Symbol {
        std::uint32_t id;
        std::size_t previous, next;
        bool alive = true;
    };
    struct Merge {
        std::uint32_t rank, id;  // id: of the merged token
    };
    struct Candidate {
        std::uint32_t rank, id;
        std::size_t at;
        bool operator<(const Candidate& other) const {  // the queue pops the largest
            return rank != other.rank ? rank > other.rank : at > other.at;
        }
    };

    static std::uint64_t pair(std::uint32_t left, std::uint32_t right) { return std::uint64_t{left} << 32 | right; }

    // ["a", "b"], or "a b" as files before 2024 have it.
    static std::pair<std::string, std::string> halves(const Json& merge) {
        if (!merge.is_string()) return {merge.at(0), merge.at(1)};
        const std::string text = merge;
        const std::size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
            throw Error("the merge \"" + text + "\" is not two tokens");
        return {text.substr(0, space), text.substr(space + 1)};
    }

    std::vector<Symbol> characters(const Text& word) const {
        std::vector<Symbol> symbols;
        bool after_unknown = false;
        for (std::size_t i = 0; i < word.size(); ++i) {
            std::string token = i == 0 ? "" : prefix;
            unicode::append(token, word[i]);
            if (i + 1 == word.size()) token += suffix;
            const auto found = vocab.find(token);
            const bool is_unknown = found == vocab.end();
            if (is_unknown && (!unknown || (after_unknown && fuse_unknown))) continue;
            symbols.push_back({is_unknown ? *unknown : found->second, symbols.size() - 1, symbols.size() + 1});
            after_unknown = is_unknown;
        }
        if (!symbols.empty()) symbols.back().next = none;
        return symbols;
    }

    const Merge* find(const std::vector<Symbol>& symbols, std::size_t left) const {
        if (left == none || symbols[left].next == none) return nullptr;
        const auto found = merges.find(pair(symbols[left].id, symbols[symbols[left].next].id));
        return found == merges.end() ? nullptr : &found->second;
    }

    void merge_all(std::vector<Symbol>& symbols) const {
        std::priority_queue<Candidate> queue;
        const auto offer = [&](std::size_t at) {
            if (const Merge* merge = find(symbols, at)) queue.push({merge->rank, merge->id, at});
        };
        for (std::size_t at = 0; at < symbols.size(); ++at) offer(at);
        while (!queue.empty()) {
            const Candidate top = queue.top();
            queue.pop();
            Symbol& left = symbols[top.at];
            const Merge* merge = left.alive ? find(symbols, top.at) : nullptr;
            if (merge == nullptr || merge->id != top.id) continue;  // outdated: its neighbours have changed
            Symbol& right = symbols[left.next];
            right.alive = false;
            left.id = top.id;
            left.next = right.next;
            if (left.next != none) symbols[left.next].previous = top.at;
            offer(left.previous);
            offer(top.at);
        }
    }

    std::unordered_map<std::string, std::uint32_t> vocab;
    std::unordered_map<std::uint64_t, Merge> merges;
    std::string prefix, suffix;
    std::optional<std::uint32_t> unknown;
    bool fuse_unknown = false, ignore_merges = false;
};

}  // namespace

Model read_bpe(const Json& settings) {
    return [bpe = std::make_shared<const Bpe>(settings)](const Text& part, Ids& ids) { (*bpe)(part, ids); };
}

}  // namespace kontext
