// SentencePiece's unigram model: the segmentation with the highest total score (Viterbi); adjacent unknowns are merged.
#include <algorithm>
#include <limits>
#include <unordered_map>

#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

constexpr double unknown_penalty = 10.0;  // below the worst piece

class Unigram {
public:
    explicit Unigram(const Json& settings) {
        if (settings.value("byte_fallback", false)) refuse("unigram model with byte fallback");
        unknown = settings.at("unk_id").get<std::int64_t>();
        double worst = std::numeric_limits<double>::infinity();
        for (const Json& piece : settings.at("vocab")) {
            const auto id = static_cast<std::int64_t>(scores.size());
            scores.push_back(piece.at(1));
            worst = std::min(worst, scores.back());
            insert(piece.at(0).get_ref<const std::string&>(), id);
        }
        if (unknown < 0 || unknown >= static_cast<std::int64_t>(scores.size()))
            throw Error("unk_id is not in the vocabulary");
        unknown_score = worst - unknown_penalty;
    }

    void operator()(const Text& text, Ids& ids) const {
        const std::string bytes = unicode::encode(text);
        std::vector<Node> best(bytes.size() + 1);
        const auto offer = [&](std::size_t start, std::size_t end, std::int64_t id, double score) {
            const double sum = score + best[start].score;
            if (best[end].start == none || sum > best[end].score) best[end] = {start, id, sum};
        };
        for (std::size_t start = 0, length = 0; start < bytes.size(); start += length) {
            length = 1;
            while (start + length < bytes.size() && (bytes[start + length] & 0xC0) == 0x80) ++length;
            bool single = false;
            std::uint32_t node = 0;
            for (std::size_t end = start; end < bytes.size() && (node = child(node, bytes[end])) != 0;) {
                ++end;
                if (ends[node] < 0) continue;
                offer(start, end, ends[node], scores[static_cast<std::size_t>(ends[node])]);
                single = single || end - start == length;
            }
            if (!single) offer(start, start + length, unknown, unknown_score);
        }
        Ids reversed;
        bool after_unknown = false;
        for (std::size_t end = bytes.size(); end > 0; end = best[end].start) {
            const bool is_unknown = best[end].id == unknown;
            if (!is_unknown || !after_unknown) reversed.push_back(best[end].id);
            after_unknown = is_unknown;
        }
        ids.insert(ids.end(), reversed.rbegin(), reversed.rend());
    }

private:
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    struct Node {
        std::size_t start = none;  // of the piece that ends here
        std::int64_t id = 0;
        double score = 0;
    };

    static std::uint64_t edge(std::uint32_t node, char byte) {
        return std::uint64_t{node} << 8 | static_cast<unsigned char>(byte);
    }

    // 0 if there is none: the root is no node's child.
    std::uint32_t child(std::uint32_t node, char byte) const {
        const auto found = edges.find(edge(node, byte));
        return found == edges.end() ? 0 : found->second;
    }

    void insert(const std::string& piece, std::int64_t id) {
        std::uint32_t node = 0;
        for (char byte : piece) {
            const auto [entry, made] = edges.emplace(edge(node, byte), static_cast<std::uint32_t>(ends.size()));
            if (made) ends.push_back(-1);
            node = entry->second;
        }
        if (node != 0) ends[node] = id;
    }

    std::vector<double> scores;
    std::unordered_map<std::uint64_t, std::uint32_t> edges;  // a trie: (node, byte) to node
    std::vector<std::int64_t> ends = {-1};                   // node to piece, or -1
    std::int64_t unknown = 0;
    double unknown_score = 0;
};

}  // namespace

Model read_unigram(const Json& settings) {
    return [unigram = std::make_shared<const Unigram>(settings)](const Text& part, Ids& ids) { (*unigram)(part, ids); };
}

}  // namespace kontext
