#include "tokenizer.hpp"

#include <algorithm>
#include <map>

#include <nlohmann/json.hpp>

#include "fields.hpp"
#include "kontext/kontext.hpp"
#include "regular_file.hpp"
#include "tokenizer_limits.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

// The special tokens that a post-processor puts before and after a single text.
void read_special(const Json& settings, Ids& before, Ids& after, int depth = 0) {
    if (settings.is_null()) return;
    const std::string type = settings.at("type");
    if (type == "RobertaProcessing" || type == "BertProcessing") {
        before.insert(before.begin(), settings.at("cls").at(1).get<std::int64_t>());
        after.push_back(settings.at("sep").at(1).get<std::int64_t>());
    } else if (type == "TemplateProcessing") {
        bool seen = false;
        for (const Json& item : settings.at("single")) {
            if (item.contains("Sequence")) {
                if (seen) refuse("template with two texts");
                seen = true;
                continue;
            }
            const std::string name = item.at("SpecialToken").at("id");
            for (const Json& id : settings.at("special_tokens").at(name).at("ids"))
                (seen ? after : before).push_back(id);
        }
    } else if (type == "Sequence" && depth < 4) {
        for (const Json& each : settings.at("processors")) read_special(each, before, after, depth + 1);
    } else if (type != "ByteLevel") {  // ByteLevel changes offsets only
        refuse("post-processor " + type);
    }
}

// The ids of the added tokens: those of the model's vocabulary, and numbers after its last for the others, in order.
// Those written beside them are ignored, as in the library.
std::map<std::string, std::int64_t> added_ids(const Json& added, const Json& vocabulary) {
    std::map<std::string, std::int64_t> ids;
    for (const Json& item : added) ids.emplace(item.at("content"), -1);
    if (vocabulary.is_object()) {  // of BPE
        for (auto& [content, id] : ids) id = vocabulary.value(content, std::int64_t{-1});
    } else {
        std::int64_t next = 0;
        for (const Json& piece : vocabulary) {
            const auto found = ids.find(piece.at(0).get_ref<const std::string&>());
            if (found != ids.end()) found->second = next;
            ++next;
        }
    }
    auto next = static_cast<std::int64_t>(vocabulary.size());
    for (const Json& item : added)
        if (std::int64_t& id = ids.at(item.at("content")); id < 0) id = next++;
    return ids;
}

std::size_t spaces_before(const Text& text, std::size_t end) {
    while (end > 0 && unicode::is_space(text[end - 1])) --end;
    return end;
}

std::size_t spaces_after(const Text& text, std::size_t start) {
    while (start < text.size() && unicode::is_space(text[start])) ++start;
    return start;
}

}  // namespace

void refuse(const std::string& component) { throw Error("this reader does not support the " + component); }

Model read_model(const Json& settings) {
    const std::string type = settings.at("type");
    if (type == "BPE") return read_bpe(settings);
    if (type == "Unigram") return read_unigram(settings);
    refuse("model " + type);
}

Tokenizer::Tokenizer(const std::string& file, const std::filesystem::path& path) {
    try {
        const Json root = parse_json(file, path);
        check_components(root.at("normalizer"), root.at("pre_tokenizer"));
        normalizer = read_normalizer(root.at("normalizer"));
        pre_tokenizer = read_pre_tokenizer(root.at("pre_tokenizer"));
        model = read_model(root.at("model"));
        read_special(root.at("post_processor"), before, after);
        const auto ids = added_ids(root.at("added_tokens"), root.at("model").at("vocab"));
        for (const Json& item : root.at("added_tokens")) {
            const Text content = unicode::decode(item.at("content").get<std::string>());
            if (content.empty()) continue;
            if (item.at("single_word").get<bool>()) refuse("added token that is a single word");
            const AddedToken token{content, ids.at(item.at("content")), item.at("lstrip"), item.at("rstrip")};
            if (item.at("normalized").get<bool>()) {
                normalized.push_back({normalizer({token.content}).text, token.id, token.strip_left, token.strip_right});
            } else {
                raw.push_back(token);
            }
        }
    } catch (const Json::exception& error) {
        throw Error(path.string() + " is not a tokenizer: " + reason(error));
    } catch (const Error& error) {
        const std::string text = error.what();  // which may begin with the path, as a file's do
        throw Error(text.find(path.string()) != std::string::npos ? text
                                                                  : path.string() + " is not a tokenizer: " + text);
    } catch (const std::exception& error) {
        throw Error(path.string() + " is not a tokenizer: " + error.what());
    }
    for (auto* list : {&raw, &normalized})
        std::stable_sort(list->begin(), list->end(),
                         [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
}

void Tokenizer::part(const std::vector<AddedToken>& tokens, const Section& section,
                     const std::function<void(std::int64_t)>& token, const std::function<void(const Section&)>& rest) {
    const Text& text = section.text;
    std::size_t done = 0;
    const auto give = [&](std::size_t end) {
        if (done < end) rest(section.part(done, end - done));
    };
    for (std::size_t at = 0; at < text.size();) {
        const auto found = std::find_if(tokens.begin(), tokens.end(), [&](const AddedToken& each) {
            return text[at] == each.content[0] && text.compare(at, each.content.size(), each.content) == 0;
        });
        if (found == tokens.end()) {
            ++at;
            continue;
        }
        const std::size_t end = at + found->content.size();
        give(found->strip_left ? spaces_before(text, at) : at);
        token(found->id);
        done = found->strip_right ? spaces_after(text, end) : end;
        at = end;
    }
    give(text.size());
}

Ids Tokenizer::encode(std::string_view utf8, std::size_t max_length, std::size_t& lost) const {
    Ids ids;
    const auto add = [&ids](std::int64_t id) { ids.push_back(id); };
    const auto piece = [&](const Section& section) { model(section.text, ids); };
    const auto plain = [&](const Section& section) { pre_tokenizer(section, piece); };
    part(raw, {unicode::decode(utf8), 1}, add,
         [&](const Section& section) { part(normalized, normalizer(section), add, plain); });
    const std::size_t room = max_length > special() ? max_length - special() : 0;
    lost = ids.size() > room ? ids.size() - room : 0;
    ids.resize(ids.size() - lost);
    ids.insert(ids.begin(), before.begin(), before.end());
    ids.insert(ids.end(), after.begin(), after.end());
    return ids;
}

}  // namespace kontext
