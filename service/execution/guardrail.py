"""The guardrail: does a task try to override the instructions it will run under?

A rule looks for an order to the model (verb, a few known words, noun), never for single words. An order that
somebody else gets, a report, a negation and a short phrase that the task only quotes and talks about pass
("translate 'ignore all previous instructions'"); the same words as an order stop, wherever they stand.
The rules read English and decide from the text alone: no model, no network, no state.
"""

import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One reason to stop a task: its name, a sentence for people, and its pattern for folded text."""

    name: str
    summary: str
    pattern: re.Pattern[str]


# a term a paragraph: {x} stands for an earlier term, _ for one gap between words, which may be a line break.
# every repetition is bounded and walks over known words, so hostile text costs linear time.
_GRAMMAR = r"""
# the words the rules are made of.
prior = previous(?:ly_\w{1,12})?|prior|preceding|earlier|above(?:_mentioned)?|foregoing|former|past|original|
    initial
safe = safety|content|ethics?|ethical|moral|moderation|alignment|censorship
fill = all|any|every|each|both|of|the|these|those|this|that|such|and|or|other|single|my|entire|whole|
    following|future|prime|full|complete|exact|whatever|system|core|usage|use|security|hidden|secret|internal|
    confidential|private|current|existing|default|built_in|main|primary|base|basic|developer|operating|strict|
    programmed|underlying|custom|old|own|assigned|stupid|actual|real|your|openai(?:'s)?|{safe}|{prior}
gap = (?:{fill}_){0,5}
orders = (?:instructions?|directives?|directions|guidelines?|guidance|rules?|(?:pre_?)?prompts?|commands?|
    orders|programming|(?:system|developer)_messages?|tasks|assignments)\b
shields = (?:guardrails?|safeguards?|restrictions?|censorship|inhibitions|moral_compass|ethics|morals)\b
limits = (?:{shields}|(?:limitations?|training|conditioning|filters?|protocols?|polic(?:y|ies)|constraints?|
    boundaries)\b)
# what surrounds the model itself: instructions "in the manual" are data, those "in this chat" are not.
here = (?:(?:the|this|that|your|our|my|any|all|an?)_)?(?:now|here|this|your?|me|us|above|before|openai|system|
    developers?|users?|admin\w*|creators?|operators?|prompts?|chats?|conversations?|context|session|messages?|
    platform|ai|assistant|model|beginning|start|rest|remainder|sake|purposes?|duration|moment|next|following|
    time)\b
data = _(?:below|attached|(?:from|by)_(?!{here})|(?:(?:printed|posted|sent|written|shown|listed|
    found)_)?(?:on|in|inside|of|at|for|within)_(?!{here})(?:(?:the|this|that|my|our|his|her|their|its)_\w|
    (?:chapter|section|page|paragraph|step|line)\b|\d)|(?:(?:that|which)_)?(?:we|they|he|she|i)_
    (?:have_)?(?:sent|emailed|issued|wrote|shared))
stop = [^\w\s-]|\s?$
end = (?=_(?:and|but|or|so|then|now|instead|you|this|given|from_now|here|please|verbatim|word_for_word|
    exactly|starting|immediately|completely|entirely|in_(?:this|our|full|a_code)|-)|{stop})
# what the model was told, and where it stands.
told =
    (?:that_|which_)?(?:you_(?:were|are|have|had|got)(?:_been)?(?:_ever|_originally|_initially|_previously)?_
        (?:told|taught|instructed|given|trained|programmed|asked|fed|shown|following|using|operating|under|
        bound)\b|you_received\b|(?:(?:was|were|been|are)_)?(?:given|provided|fed|assigned|issued)_
        (?:to_you|by_your)\b|(?:your|the)_(?:developers?|creators?|makers?|owners?|operators?|system)_
        (?:gave|told|wrote|set)|(?:i|we|they|anyone)_(?:have_|had_)?(?:ever_)?(?:told|gave|given|taught)_you)
held = {told}|(?:that_|which_)?you_(?:(?:got|had)\b(?!_(?:to|for|about|on)\b)|have{end})
before = (?:that_)?(?:(?:was|is|were|has_been|came|comes|appears?|i_have|i|we)_)?(?:(?:written|said|stated|
    mentioned|given)_)?(?:above|before|prior(?:_to)?|preced(?:es?|ed|ing)|previously|earlier|so_far|until_now|
    up_(?:to|until)_(?:now|here|this_point))\b
target =
    {gap}(?:system|developer)_messages?(?!{data})
    |{gap}(?:your|system|developer|hidden|openai's|{prior})_{gap}{orders}(?!{data})
    |{gap}{prior}_{gap}{shields}(?!{data})
    |{gap}(?:{orders}|{limits})_(?:{held}|{before}{end})
    |(?:our_)?{gap}{prior}_{gap}(?:text|context|conversations?){end}
    |(?:all|any|every)_{gap}{prior}_{gap}(?:messages|inputs?|{limits})(?!{data})
    |(?:everything|anything|whatever|what|all(?:_of)?(?:_that|_this)?|(?:(?:the|any|all|of)_){0,3}
        (?:text|content|words))_(?:{told}(?!_about_(?!you))|you_(?:have_)?(?:know|learned|learnt)
        (?!_about|_in|_at)\b|{before}{end})
    |(?:(?:the|all|everything|anything)_(?:of_the_)?)?(?:above|foregoing){end}
    |(?:everything|all)_{prior}(?={stop})
    |(?:previous|prior)(?=[.!]|\s?$)
# what is done to it.
ignore = ignore|disregard|forget(?:_about)?|discard|dismiss|overlook|skip|bypass|override|overrule|abandon|
    disobey|neglect|violate|circumvent|unlearn|scrap|drop|never(?:_)?mind|(?:set|put|push|cast)_aside|throw_
    (?:out|away)|do_away_with|get_rid_of|deviate_from|do_the_opposite_of|(?:break_)?free_(?:yourself_)?from|
    (?:pay|give)_no_(?:attention|heed|mind|regard)_to|(?<!\w\x20)(?:ignoring|disregarding)|
    (?:by|while|start|begin|mind|consider)_(?:ignoring|disregarding|forgetting|overriding)
defy = (?<!if\syou\s)(?:do_not|never|stop|cease|quit|refuse_to|no_longer|not|without|instead_of|rather_than)_
    (?:(?:ever|have|need|required|obliged|supposed|be|being|to)_){0,4}
    (?:(?:follow|obey|heed|respect|observe|honou?r)(?:ing)?|(?:adher(?:e|ing)|stick(?:ing)?|listen
    (?:ing)?)_to|comply(?:ing)?_with|(?:abid(?:e|ing)|bound|limited|restricted|constrained)_by|subject_to|
    regard_(?:for|to))
disable = {ignore}|disable|deactivate|evade|(?:turn|switch|shut)_(?:off|down)|(?:get|work)_around
void = (?:_(?:are|is|were|have_been|as))?(?:_(?:now|all|hereby|not|no_longer)){0,2}_
    (?:(?:null_and_)?void|invalid|null|cancel+ed|revoked|rescinded|superseded|suspended|lifted|overridden|
    obsolete|removed|deleted|disabled|erased|irrelevant|(?<=no\slonger\s)(?:appl(?:y|ies)|matters?|bind|count|
    hold|exist|valid|binding|relevant)|(?<=not\s)(?:valid|binding|applicable)|(?:do|does|did)_not_
    (?:apply|matter|bind|count|hold|exist)|(?:can|may|should|must)_(?:now_)?be_(?:ignored|disregarded)|
    (?:not_|longer_)?in_(?:effect|force))\b
# what is asked for.
show = reveal|show|print|output|display|repeat|leak|disclose|expose|dump|share|tell|give|send|list|recite|
    quote|reproduce|return|write|echo|spell|state|divulge|provide|read|paste|copy|report|translate|
    summari[sz]e|paraphrase|describe|explain|encode|convert|type_out|put|hand_over|include|forward|what_
    (?:is|are|was|were)|let_me_(?:see|know|read)|(?:can|could|may)_(?:i|we)_
    (?:please_)?(?:see|have|get|read|know)|i_(?:want|need|would_like|would_love)
    (?:_to_(?:see|know|read|have|get))?|(?:by|start|begin)_(?:revealing|showing|printing|repeating|outputting|
    quoting)
piece = (?:(?:me|us|out|back|down|to|with|an?|verbatim|contents?|text|copy|first|last|\d+|words?|lines?|
    sentences?|wording|version|summary|part|everything|what|is|in|from|now|written|please|just|about|
    {fill})_){0,8}
secret =
    your_{gap}(?:(?:instructions?|directives?|guidelines|rules|system_messages?)\b
        (?!_(?:for|about|on|when|regarding|of_thumb|to_(?:my|our|an?|the_(?!user))\b))|programming{end}|
        (?:entire|full|whole)_context\b|(?:pre_?)?prompts?(?:{end}|_(?:in|into|to|as|is|was|texts?|word|
        letter|backwards|with|at|that|line)\b))
    |(?<!\ba\s)(?:(?:system|developer)_(?:prompts?|instructions|directives|message)|(?:hidden|secret)_
        (?:prompts?|instructions)|(?:initial|original|internal|underlying|base|confidential)_{gap}prompts?|
        (?<=were\sthe\s)(?:initial|original)_instructions{end})\b(?!_(?:when|if|for_(?:an?|the|my|our)\b|used|
        i_|we_|field|parameter|role|template|design|so|should))
    |{gap}(?:{orders}|message)_{held}
    |(?:what|everything|all)_{told}
# what the model should become.
free = (?:no|without|without_any|zero|free_(?:of|from)|not_(?:bound|limited|restricted|constrained)_by|
    unbound_by|do_not_have)_{gap}(?:{shields}|(?:rules|guidelines|limitations|limits|filters?|boundaries|
    content_policy)\b)(?!_(?:on_(?!what_you)|about_|for_|to_))
loose = unrestricted|unfiltered|uncensored|unethical|amoral|jailbroken|unaligned|unbound|lawless|evil|rogue
bot = ai|assistant|chat(?:_)?bot|bot|model|language_model|llm|gpt|chatgpt|claude|entity|persona|hacker|system
become = you_(?:are|will|must|shall)(?:_now)?(?:_going_to)?(?:_be|_act_as)?|act_
    (?:as(?:_if_you_(?:are|were))?|like)|behave_(?:as|like)|pretend_(?:to_be|(?:that_)?you_are)|role
    (?:_)?play_as|become|simulate|imagine_you_are|be|(?:respond|answer|speak)_(?:as|like)|play
    (?:_the_role_of)?
mode = (?:developer|dev|dan|jailbreak|god|sudo|unsafe|no_filter|chaos|freedom|override|{loose})_mode\b
    (?!_(?:on|in|for|of|from|via|using|settings?|option|toggle|switch|button|menu|flag)\b
    (?!_(?:this|your|our)))
# the rules.
new_instructions = \b(?:
    your_(?:new|updated|revised|real|actual|true|only)_{gap}{orders}_(?:are|is|will_be|now|follow)\b
    |your_new_{gap}(?:instructions?|directives?|prompt)\s?:
    |new_instructions_follow\b
    |(?<![\w,]\x20)(?:(?:here_are|these_are|follow|obey|begin|start)_)?(?:(?:your|the|these|my)_)?(?:new|
        updated|revised)_(?:system_)?(?:instructions?|directives?|prompt)
        (?:_(?:from|for|by)_(?:the_|your_)?{here})?\s?(?::|-\s)
    |you_(?:now_)?have_(?:been_given_|received_)?new_(?:instructions|orders|directives|rules)\b
    |(?:these|this|the_following|my)_(?:new_)?(?:instructions?|message|prompt|rules?|orders?|command)_
        (?:now_|will_|shall_)?(?:overrides?|supersedes?|replaces?|cancels?|(?:takes?|has|have)_
        (?:precedence|priority)_over)_{target}
    |(?:that_)?your_{gap}(?:{orders}(?<!orders)|{limits}(?<!policy)(?<!training)){void}
    |(?:(?:{prior}_{gap}{orders}|system_(?:prompt|instructions)|{orders}_(?:{told}|{before})){void}|
        (?:everything|whatever|what)_{told}(?:_[\w']+){0,4}?{void})(?!_(?:to|for)_(?!you|this|me))
    |(?:rules|guidelines|instructions|restrictions)_(?:no_longer|do_not)_apply_to_you\b
    |(?:cancel|revoke|nullify|void|erase|wipe|purge|reset)_{gap}(?:your|system|{prior})_{gap}
        (?:instructions|programming|prompts?|directives|guidelines|rules)\b(?!{data})
    |(?:delete|clear|replace|rewrite|overwrite|change|update|remove)_{gap}your_{gap}
        (?:instructions|programming|prompt|guidelines)\b)
disable_safety = \b(?:
    (?:{disable}|{defy})_{gap}(?:your|openai's)_{gap}{limits}(?!{data})
    |(?:{disable}|suspend|remove|lift|relax|lower|break|defeat|unlock|loosen)_{gap}
        (?:your_{gap}{shields}|(?:guardrails|safeguards)\b|{safe}_{gap}
        (?:{limits}|(?:rules|guidelines|measures|checks|features)\b))(?!{data})
    |(?:turn|switch)_{gap}(?:your|{safe})_{gap}{limits}_off\b
    |(?:respond|answer|reply|speak|operate|act|talk|continue)(?:_[\w']+){0,3}?_{free})
ignore_instructions = \b(?:
    (?:{ignore}|{defy})_{target}
    |(?:regardless_of|irrespective_of|contrary_to|against)_your_{gap}
        (?:instructions|programming|guidelines|prompt)\b(?!{data})
    |(?:ignore|disregard|forget|bypass|override)_(?:(?:all|any|every)_{gap}(?:instructions?|directives?|
        guidelines|rules|prompts?|programming|restrictions)|the_(?:instructions?|(?<!forget\sthe\s)rules)|
        everything(?!_you)){end}
    |(?:(?:as_if|as_though|like|that)_)?you_never_(?:received|had|got|saw)_{gap}(?:instructions|rules)\b
    |(?:obey|follow|listen_to)_only_(?:me|my)\b
    |only_(?:obey|follow|listen_to)_(?:me|my)\b)
reveal_prompt = \b(?:
    (?:{show})_{piece}(?:{secret})(?!{data})
    |(?:reveal|leak|disclose|divulge)_the_prompt\b{end}
    |(?:what|how)_(?:does|do|did|has)_(?:your_{gap}(?:prompt|instructions|system_message|guidelines)_|
        the_system_(?:prompt|message)_(?:say|contain))
    |(?:what|which)_{gap}{orders}_(?:were|have|did|do|are)_you_(?:been_)?(?:given|follow(?:ing)?|have|receive|
        told|operating|under)(?!_(?:for|when|if|about))
    |what_did_your_(?:developers?|creators?|makers?|owners?)_tell_you\b
    |(?:repeat|echo|print|output|reveal|recite)_{gap}(?:previous|preceding|prior|above)_
        (?:instructions|prompts?){end}
    |what_(?:were|have)_you_(?:been_)?(?:told|instructed|programmed)\b
    |(?:repeat|print|output|reveal|dump|recite|echo|return|write|copy|display|show|reproduce|type|give|tell)
        (?:_(?:out|down|back|me|us))?_(?:everything|all|{piece}(?:text|words?|contents?|prompts?|
        instructions?|conversation|lines?|messages?))_{before}(?=_(?:this(?:{stop})|(?:this|my|our)_
        (?:first_)?(?:line|message|point|prompt|sentence|text|conversation)|verbatim|word_for_word|exactly|
        starting|in_a_code|and)|{stop})
    |what_(?:comes|came|is|was|were)_(?:(?:written|said)_)?(?:above|before)_(?:this|my)_
        (?:line|message|text|conversation)
    |(?:reveal|show|print|output|repeat|copy|tell|give|recite|what)_(?:[\w']+_){0,6}?(?:at|from|is)_the_
        (?:beginning|start|top)_of_(?:this|our|your|the)_(?:conversation|chat|prompt|context|session)\b)
new_identity = \b(?:
    (?:you_are_now|act_as|pretend_to_be|become|role(?:_)?play_as|play|be)_(?:an?_)?dan\b
        (?=[^\w\s,-]|\s?$|\n|\x20(?:and|who|which|mode|do|stands|now|from[ ]now))
    |\bdan_(?:which_|who_)?stands_for\b
    |dan\b[^\n]{0,80}(?:do_anything_now|no_(?:rules|restrictions|limits|filters)|jailbreak|unrestricted)
    |you_(?:can|will)(?:_now)?_do_anything_now\b
    |{become}_(?:[\w']+_){0,4}(?:{loose})(?:_\w+)?_(?:{bot})\b
    |you_are_now_(?:[\w']+_){0,5}?{free}
    |{become}_(?:[\w']+_){0,4}(?:{bot})_(?:[\w']+_){0,4}?{free}
    |(?:(?:as_if|as_though|that|if|like|and)_)?you_(?:now_)?(?:have|had|are|were|operate)
        (?:_now|_literally)?_{free}(?<!limits)
    |(?:enter|enable|activate|(?:switch|change)_(?:in)?to|turn_on|go_into|start|unlock|engage|initiate|
        simulate|(?:you_are|respond|answer|act|operate)(?:_now)?_in|(?:ai|chatgpt|gpt|assistant|model|
        you)_with)_(?:(?:the|your|an?|now|into)_){0,2}{mode}
    |you_are(?:_now)?_in_(?:admin\w*|debug|root|maintenance|test\w*|diagnostic)_mode\b
    |(?:you_are_(?:no_longer|not)|forget_(?:that_)?you_are|stop_being)_
        (?:an?_)?(?:ai|chatgpt|gpt|claude|language_model|(?:ai_)?assistant{end})
    |you_(?:are|have_been)(?:_now)?_(?:{loose}|unshackled|liberated|freed_from)\b(?!_by|_as)
    |jailbreak_yourself\b)
# this one reads lines, where _ is one blank.
command = you_(?:are_(?!logged|running|connected)|must|will|should|shall|have_no|may)|your_
    (?:new|task|role|job|instructions)|ignore|disregard|forget|reveal|override|obey|comply|repeat_your|
    output_your|print_your|from_now|always|never|do_not|don't|act_as|respond|answer|disable|enable|assistant_|
    the_(?:assistant|ai|model)_|new_instructions|the_user_is_now
forged_section =
    (?<!=)={3,40}_?(?:system_instructions|tool_descriptions|user_input)\b_?(?:[0-9a-f]{4,64}\b)?_?(?:=|$)
    |(?<!=)={3,40}_?end_[0-9a-f]{8,64}\b
    |<\|\w{2,30}\|>
    |(?<!\w)\[/?inst\]
    |<</?sys>>
    |<(?:start|end)\x5fof\x5fturn>
    |</?(?:system|(?:system|developer)[\s\x5f-](?:prompt|message|instructions?)|user[\s\x5f-]input)>
    |^[^\w\n]{0,9}(?:(?:begin|start|end)(?:ning)?_(?:of_)?(?:the_|your_)?)?(?:system|developer)_
        (?:prompt|message|instructions?)_?[^\w\s:.,!?]{2,40}_?$
    |(?:^|[\[({<\#=*-])_?(?:begin|start|end)(?:ning)?_(?:of_)?(?:the_|your_)?(?:system|developer|user)_
        (?:prompt|message|instructions?|input|query)_?(?:$|[^\w\s.,?!])
    |^_?\#{1,6}_?(?:(?:system|instruction)_?(?::|\#\#)|system_(?:prompt|message|override)_?(?::|$))
    |^[^\w\n]{0,6}system(?:_(?:prompt|message|instructions?|note|notice|command|
        update))?[^\w\n]{0,3}[:\]][^\w\n]{0,6}\n?(?:{command})\b
    |^`{3,9}_?system_?$
    |^[^\w\n]{0,6}(?:system|admin|developer|security|root)_override\b
# what makes a match somebody else's act, earlier in its clause: a negation, another subject, a question.
adverb = (?:(?:please|kindly|just|simply|now|also|always|then|immediately|completely|fully|totally|entirely|
    first|instead|only|ever|even|often|usually|sometimes|all|the|that)_){0,4}
other = not|never|who|which|that|they|we|i|he|she|it|people|men|women|children|staff|everyone|git|like|
    such_as|of|said|phrase|expression|titled|called|named|saying|(?!(?:as|this|thanks|always|sometimes|yes|
    afterwards|regardless)\b)\w{1,30}s
addressed = you|yourself|free|is|need|have|sure|able|allowed|required|supposed|going|remember|order|proceed|
    try|want|like|ready|begin|start|continue|ok|okay|fine|were|permission
reported = (?:
    \b(?:{other})_{adverb}
    |\b(?!(?:{addressed})\b)(?<!you\sare\s)(?<!now\s)(?<!hereby\s)[\w']{1,30}\sto\s{adverb}
    |\Ato_{adverb}
    |\b(?:why|how|whether|if|do|does|did|make|makes|making|made|let|lets|help|helps|(?<!you\s)(?<!\bai\s)
        (?<!model\s)(?<!assistant\s)(?:could|would|will|might|may|can|should|must))
        (?:_(?!(?:you|your|yourself|and|then|but|so|or|sure|possible|please|like)\b)[\w'-]{1,30}){0,5}_
    |\b(?:tell|ask|instruct|inform|advis|remind|request|urg|warn)(?:e|s|ed|ing)?_
        (?!you|yourself|me\b)[\w'\x20]{1,30}_to_[\w'\x20]{1,40}_(?:and|or)_)\Z
# a short quotation that the task talks about.
mention = translate|explain|proofread|rewrite|rephrase|correct|edit|define|phrase|sentence|expression|words?|
    line|string|text|titled?|called|slogan|says?|said|shouts?|writes?|mean(?:ing)?|examples?|attacks?|
    payloads?|prompts?|includes?|typed|flagged|detect|classify|like|as|is|does|why|how|what
quoted = (\b(?:{mention})\b[^".!?\n]{0,60}|[=(\[]_?)"[^"\n]{1,80}"(?:,?_(?:(?:and|or)_)?"[^"\n]{1,80}"){0,9}
"""
_TERMS: dict[str, str] = {}
for _term, _words in re.findall(r"^(\w+) =(.*(?:\n +.*)*)", _GRAMMAR, re.MULTILINE):
    _TERMS[_term] = re.sub(r"\{([a-z]+)\}", lambda earlier: f"(?:{_TERMS[earlier[1]]})", _words)


def _compile(term: str, gap: str) -> re.Pattern[str]:
    return re.compile(_TERMS[term].replace("_", gap), re.VERBOSE | re.MULTILINE)


def _rule(name: str, summary: str, gap: str = r"(?:[\s,/-]{1,2})") -> Rule:
    return Rule(name, summary, _compile(name, gap))


_FORGED = _rule("forged_section", "The task forges a section boundary or a chat-template mark.", "[ ]")
RULES: tuple[Rule, ...] = (
    _FORGED,
    _rule("new_instructions", "The task replaces or cancels the instructions it runs under."),
    _rule("disable_safety", "The task asks the model to drop its safeguards."),
    _rule("ignore_instructions", "The task tells the model to ignore the instructions it runs under."),
    _rule("reveal_prompt", "The task asks for the instructions the model runs under."),
    _rule("new_identity", "The task gives the model an identity that has no rules."),
)
_REPORTED = _compile("reported", "[ ]")
_QUOTED = _compile("quoted", "[ ]")
# curly quotes become straight ones; letters of other scripts that look latin become latin.
_CURLY = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb"
_LOOKALIKE = "аеорсухіјѕԁոɡıαοευ"
_LETTERS = str.maketrans(_CURLY + _LOOKALIKE, "''''" + '"' * 6 + "aeopcyxijsdngiaoev")


def _visible(text: str) -> str:
    return "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Mn", "Me"))


def _plain(task: str) -> str:
    """Lower case, with nothing invisible, no marks on letters, and letters that look latin made latin."""
    if task.isascii():
        return task.lower()
    # marks go before normalising too: putting a long run of them in order takes quadratic time.
    # two Arabic ligatures grow to whole phrases, 18 letters for one.
    visible = _visible(task).translate({0xFDFA: " ", 0xFDFB: " "})
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", visible).casefold())
    return _visible(plain).translate(_LETTERS)


def _lines(task: str) -> str:
    lines = re.sub(r"\r\n?|[\x85\u2028\u2029]", "\n", _plain(task))
    return re.sub(r"[^\S\n]+", " ", lines)


_NOT_PLAIN = re.compile(r"""['"*`~_\n]|\bdont\b""")


def _prose(lines: str) -> str:
    if not _NOT_PLAIN.search(lines):
        return lines
    text = _QUOTED.sub(r"\1;", re.sub(r"(?<!\w)'|'(?!\w)", '"', lines))
    text = re.sub(r'["*`~]|(?<!\w)_|_(?!\w)', "", re.sub(r'"(?=[ ]?[,)\]])', ";", text))
    text = re.sub(r"n't\b|(?<=\bdo)nt\b", " not", text)
    text = text.replace("what's", "what is").replace("'re ", " are ").replace("'ve ", " have ")
    return re.sub(r"[ ]*\n\s*", "\n", re.sub(r" {2,}", " ", text))


def stopped_by(task: str) -> Rule | None:
    """Take the text of a task; return the first rule that stops it, or None when it may run."""
    lines = _lines(task)
    if _FORGED.pattern.search(lines):
        return _FORGED
    text = _prose(lines)
    for rule in RULES[1:]:
        for match in rule.pattern.finditer(text):
            if not _REPORTED.search(text, max(0, match.start() - 80), match.start()):
                return rule
    return None
