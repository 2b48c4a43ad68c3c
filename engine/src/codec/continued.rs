//! The prompt of an answer that goes on where the last turn of a conversation ends: assistant prefill, as `continue_final_message` of Hugging
//! Face's library does it.
//!
//! Templates close every turn. A mark is put behind the text of the last one before it is rendered, and the prompt is cut where it stands.

use plexus_types::{Chat, RequestError, Role};

/// A noncharacter of Unicode, which no text holds, behind the text that is continued.
const MARK: char = '\u{FDD2}';

/// Renders `chat`, whose last turn is not over, by `render`.
///
/// Errors: those of `render`, [`RequestError::Invalid`] if the last turn is not the model's, calls tools, or is not what the template writes.
pub(super) fn render(chat: &Chat, render: impl FnOnce(&Chat) -> Result<String, RequestError>) -> Result<String, RequestError> {
    let mut chat = chat.clone();
    let invalid = |why: &str| Err(RequestError::invalid("messages", format!("the last message cannot be continued: {why}")));
    let Some(turn) = chat.messages.last_mut().filter(|turn| turn.role == Role::Assistant) else {
        return invalid("it is not of the role \"assistant\"; end with the text that the answer is to go on from");
    };
    if !turn.tool_calls.is_empty() {
        return invalid("it calls tools; send their results behind it");
    }
    let text = turn.content.replace(MARK, "\u{FFFD}");
    turn.content = format!("{text}{MARK}");
    let mut rendered = render(&chat)?;
    // Of the space before a text templates keep what they like, of the text itself everything.
    match rendered.rfind(MARK).filter(|at| rendered[..*at].ends_with(text.trim_start())) {
        Some(at) => rendered.truncate(at),
        None => return invalid("this model's chat template does not write its text as it is; send it as a part of the last user's turn"),
    }
    rendered.retain(|letter| letter != MARK);
    Ok(rendered)
}

#[cfg(test)]
mod tests {
    use plexus_types::{Message, ToolCall};

    use super::*;
    use crate::codec::template::ChatTemplate;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn rendered(template: &str, turns: Vec<Message>) -> Result<String, String> {
        let template = ChatTemplate::new(template.into(), None, Vec::new()).unwrap();
        let chat = Chat { messages: turns, continues: true, ..Chat::default() };
        template.render(&chat).map_err(|error| error.to_string())
    }

    fn turns(text: &str) -> Vec<Message> {
        vec![Message::text(Role::User, "hi"), Message::text(Role::Assistant, text)]
    }

    #[test]
    fn the_prompt_ends_with_the_text_of_the_last_turn() {
        for text in ["The capital of", "{", "a trailing space ", "hi", "", "x\n"] {
            let expected = format!("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{text}");
            assert_eq!(rendered(CHATML, turns(text)), Ok(expected));
        }
    }

    #[test]
    fn a_template_may_trim_the_space_around_a_turn_and_close_the_thoughts_before_it() {
        let trimming =
            CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content | trim }}");
        let expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nOslo is ";
        assert_eq!(rendered(&trimming, turns(" Oslo is ")), Ok(expected.to_owned()));
    }

    #[test]
    fn a_turn_that_cannot_be_continued_is_refused_with_the_reason() {
        let shouting = CHATML.replace("m.content", "m.content | upper");
        let refusal = rendered(&shouting, turns("Oslo")).unwrap_err();
        assert!(
            refusal.starts_with("the last message cannot be continued: this model's chat template does not write its text"),
            "{refusal}"
        );
        let dropping = CHATML.replace("m.content", "messages[0].content");
        assert!(rendered(&dropping, turns("Oslo")).is_err());
        let refusal = rendered(CHATML, vec![Message::text(Role::User, "hi")]).unwrap_err();
        assert!(refusal.starts_with("the last message cannot be continued: it is not of the role \"assistant\""), "{refusal}");
        let mut calling = turns("");
        calling[1].tool_calls.push(ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() });
        let refusal = rendered(CHATML, calling).unwrap_err();
        assert!(refusal.starts_with("the last message cannot be continued: it calls tools"), "{refusal}");
    }

    #[test]
    fn the_mark_is_never_part_of_a_prompt() {
        let turns = vec![Message::text(Role::User, "a\u{FDD2}b"), Message::text(Role::Assistant, "c\u{FDD2}")];
        let expected = "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nc\u{FFFD}";
        assert_eq!(rendered(CHATML, turns), Ok(expected.to_owned()));
    }
}
