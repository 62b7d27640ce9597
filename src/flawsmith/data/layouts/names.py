"""What the name of a folder says of the parts in it: good or flawed, in the words and languages that people use.

A wrong guess towards good would teach a model flaws, so what is not clear is called unclear, and whoever reads a folder
refuses it instead of guessing.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from flawsmith.data.samples import Split

Meaning = Literal["good", "flawed", "unclear"]


def nfc(name: str) -> str:
    """A name in its composed form: macOS and archives take letters with accents apart, keyboards do not.

    Example:
        >>> len("o\\u0308l"), len(nfc("o\\u0308l"))
        (3, 2)
    """
    return unicodedata.normalize("NFC", name)


def on_disk(path: Path) -> Path:
    """The file or folder that a path means where its letters with accents are composed otherwise than on the disk.

    Args:
        path: a path that leads nowhere as it is written.

    Returns:
        The path under which it lies; the one given where there is none.
    """
    place = Path(path.anchor)
    for part in path.relative_to(place).parts:
        if not os.path.lexists(place / part):
            try:
                there = sorted(name for name in os.listdir(place) if nfc(name) == nfc(part))  # noqa: PTH208
            except OSError:
                return path
            if not there:
                return path
            place /= there[0]
        else:
            place /= part
    return place


_UNACCENTED = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})


def fold(name: str) -> str:
    """A name without case, accents and width, so that spellings of one word are equal.

    Example:
        >>> fold("Fehlerfrei"), fold("défectueux"), fold("ＮＧ")
        ('fehlerfrei', 'defectueux', 'ng')
    """
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c)).translate(_UNACCENTED)


def _words(text: str) -> frozenset[str]:
    return frozenset(fold(word) for word in text.split())


_GOOD = _words("""
    good goods ok okay oks pass passed passes passing normal normals accept accepted accepts acceptable approve
    approved healthy clean intact conform conforms conforming conformed conformity compliant flawless faultless
    perfect correct proper fine usable serviceable undamaged golden goldensample success successful io
    gut gute guten guter gutes inordnung iordnung konform einwandfrei makellos tadellos bestanden richtig
    akzeptiert angenommen freigegeben normale intakt heil brauchbar sauber
    bon bons bonne bonnes conforme conformes correcte corrects accepte acceptes accepté acceptée sain sains saine
    reussi normaux bueno buenos buena buenas bien correcto correctos correcta aceptado aceptados aprobado aprobados
    aprobada aprobadas sano sanos sana bom bons boa boas perfeito aprovado aprovados aprovada aprovadas aceito
    buono buoni buona buone conformi accettato accettati approvato approvati idoneo idonei integro integri normali
    corretto corretti bune admis corect
    goed goede goedgekeurd gaaf bra god gode godt godkänd godkända godkendt godkjent hyvä hyvät hyväksytty ehjä
    ehjät kunnossa normaali hea korras
    dobry dobre dobra dobrý dobré poprawny poprawne prawidłowy prawidłowe zgodny zgodne shodny shodné vporadku
    vporiadku bezvadny bezvadné dober dobri dobro dobar ispravan ispravno jó megfelelő hibátlan geras geri labs
    labi iyi sağlam kusursuz hatasız uygun kabul geçti
    baik bagus
    хороший хорошие хорошо хорошая годный годные годен годно норма нормальный нормальные исправный исправные добрий
    добре придатний придатні добър добри καλό καλά καλός αποδεκτό
    सही جيد سليم خوب سالم טוב תקין अच्छा ดี ผ่าน
    buenestado bonétat buonostato pristine неповрежденные целые hyväksytyt přijato prijaté przyjęte sprejeto elfogadva
    исправни исправан прихваћено שלם цілі kaliteli
    nominal inlier inliers unauffällig ordentlich apto aptos apta aptas perfeita perfeitas perfeitos
    goedkeur godkänt godkand virheetön virheettömät vyhovuje vyhovující bezchybný megfelelt acceptat lulus lolos layak
    исправен исправна изправен сагласно приемливо αποδεκτά κατάλληλο goeie bona mazuri tinkamas tinkami
    aceptable aceptables correctas valido valida validos validas valide valides sanas limpio limpia limpios limpo limpos
    sprawny sprawne sprawna akceptowane zaakceptowane normalny normalne czysty czyste całe cały správné správný kvalitní
    bezchybné čisté čistý normální rendben elfogadott elfogadható normális tiszta inorde normaal acceptabel accepterad
    oskadad oskadade rätt godkjente godkendte puhdas accettabile accettabili regolare regolari pulito puliti propre
    propres réussite akzeptabel korrekt freigabe curat принято целый ок добрі якісні справні соответствует чистые
    чистый нормально prihvaćeno ustrezni ustrezno ustrezen εντάξει σωστά diterima sempurna ของดี طيب صالح स्वीकृत
    functional okey okej uskadd uskadet onaylandı onaylı temiz doğru
    tinkama sobiv sobivad நல்லது நல்ல ভালো ਚੰਗਾ ठीक ಒಳ್ಳೆಯ మంచి ปกติ مقبول قبول עבר
""")
_FLAWED = _words("""
    bad bads ng ngs nok noks ko nio nogood notok fail failed fails failure failures failing reject rejects rejected
    rejection abnormal abnormals abnormality anomaly anomalies anomalous anomalie anomalien anomalia anomalias
    defect defects defective defectives flaw flaws flawed fault faults faulty damage damages damaged broken wrong
    incorrect improper unhealthy sick diseased dirty contaminated contamination nonconform nonconforming nonconformity
    noncompliant scrap scraps scrapped waste unacceptable unacceptables unusable imperfect irregular disapproved
    denied rework
    scratch scratches scratched crack cracks cracked dent dents dented stain stains rust rusty corrosion burr burrs
    bent deformed deformation discoloration porosity pitting blowhole chipped torn blister blisters misprint
    schlecht schlechte schlechten schlechter fehler fehlerhaft fehlerhafte defekt defekte defekten ausschuss
    ausschuß mangel mängel mangelhaft nacharbeit durchgefallen falsch abgelehnt gesperrt beschädigt schadhaft
    kaputt anormal verworfen maengel beschaedigt kratzer riss risse delle beule bruch rost lunker schrott
    mauvais mauvaise mauvaises défaut défauts défectueux défectueuse défectueuses rebut rebuts refusé refusés
    rejeté rejetés cassé cassés abîmé endommagé rayure rayures fissure fissures malo malos mala malas mal defecto
    defectos defectuoso defectuosos defectuosa defectuosas incorrecto rechazado rechazados rechazada rechazadas
    dañado dañados fallo fallos falla rasguño grieta ruim ruins maus defeito defeitos defeituoso defeituosos
    defeituosa defeituosas reprovado reprovados reprovada reprovadas rejeitado danificado avariado dolent dolents
    cattivo cattivi cattiva cattive difetto difetti difettoso difettosi difettosa difettose scarto scarti rifiutato
    rifiutati guasto guasti rotto rotti danneggiato graffio graffi cricca crepa inidoneo defecte neconform respins
    rebuturi
    fout foute fouten slecht slechte afkeur afgekeurd beschadigd kras barst deuk dålig dåliga underkänd underkända
    fel felaktig felaktiga kasserad dårlig dårlige fejl feil afvist avvist kasseret huono huonot viallinen
    vialliset virhe virheellinen hylätty halb praak vigane
    wadliwy wadliwe wadliwa wada wady zły złe zła uszkodzony uszkodzone uszkodzona niepoprawny niezgodny brak braki
    špatný špatné vadný vadné vada vady zmetek zmetky chybný chybné chyba neshodný zlý zlé slabo napaka napake
    neispravan neispravno loše škart rossz hibás selejt hiba blogas blogi brokas slikts slikti kötü hatalı kusurlu
    hata bozuk uygunsuz ret hurda
    buruk jelek cacat rusak gagal
    nogo outofspec offspec outoftolerance offnominal outlier outliers malignant atypical rotten discard discards
    discarded blocked quarantine quarantined dontuse thumbsdown misaligned
    sperre sperrteile sperrlager gebrochen gerissen verbogen roto rotos rota rotas trasig trasiga trasigt ubrukelig
    mislykket slæmt sérült arızalı
    сломанный сломанные битый битые поломка бракований браковані дефектни
    λάθος مرفوض تالفة गलत মন্দ খারাপ மோசமான ผิดปกติ ใช้ไม่ได้ ไม่ดี
    плохой плохие плохо плохая брак бракованный бракованные дефект дефекты дефектный дефектные негодный негодные
    неисправный неисправные поганий погані непридатний непридатні лош лоши дефектен κακό κακά κακός ελαττωματικό
    σκάρτο invalid invalids invalide invalides nokay oos fehlerbehaftet auffällig underkänt brāķis katki slegte
    дефектов дефектами ελαττωματικά απορριφθέντα கெட்டது ਮਾੜਾ ಕೆಟ್ಟ చెడు مردود נכשל wad wadami vad vadou mbaya txarra
    blemish blemishes blemished deviation deviations deviating toss tossed marred worn dead malestado kaputte kaputter
    hylätyt hylätyksi zavrnjeno zavrnjeni zamítnuto zamítnuté zamietnuté odrzucone odrzucony elutasítva elutasított
    пошкоджені пошкоджений поврежденные поврежденный одбијено неисправни неисправан שבור שבורים rysa rysy rissen
    reprobado reprobados reprobada reprobadas rechazo rechazos sucio sucia sucios dañadas dañada rejeitada rejeitadas
    rejeitados refugo refugos sujo sujos mau odpad odpady błędny błędne defekty defektów brudny brudne pęknięte pęknięty
    odmítnuté odmítnuto poškozené poškozený porušené kaldı yanlış kirli reddedildi kırık defo defolu arıza törött koszos
    elfogadhatatlan foutief afwijkend afwijking afwijkingen kapot defekta defekter avvisad avvisade avviste smutsig
    skadad skadade skadet kasserade kasserede ødelagt rikki likainen anomalo anomali sporco sporchi scartato scartata
    scartate scartati errato errati défaillant défaillants abîmée abîmées rejet rejets échec échecs ablehnen verschmutzt
    deteriorat murdar аномалия аномалии аномальные дефекта дефектом отклонено сломан грязные грязный повреден loši slabi
    odbijeno napako napak greška greškom greške απορριπτέο λανθασμένα ελάττωμα ελαττώματα tolak ditolak ของเสีย פסול
    अस्वीकृत defected deffect deffects rej ugly worse worst
    kalitesiz çürük masama échoué aussortiert aussortierte
    سيئ سيء معيب تالف بد معیوب רע פגום खराब เสีย ไม่ผ่าน
""")
# Languages without spaces: searched for within a name, the longest first.
_UNSPACED_GOOD = _words("""
    良品 良好 良 合格 正常 优良 優良 好 完好 无缺陷 無缺陷 無欠陥 欠陥なし 无瑕疵 無瑕疵 无异常 異常なし 양품 정상
    합격 양호 무결함 좋음 좋은 통과 깨끗 정품 우수 优质 通过 完整 正确 きれい グッド オーケー 正品 適合
    合適 适合 良件 적합
""")
_UNSPACED_FLAWED = _words("""
    不良 非良品 不合格 异常 異常 缺陷 瑕疵 欠陥 欠点 坏 壞 不好 次品 废品 廢品 不正常 非正常 残次 破损 损坏 划痕
    裂纹 傷 キズ 疵 汚れ 打痕 불량 불합격 결함 이상 비정상 파손 나쁨 부적합
    瑕 劣质 悪 バッド エヌジー 나쁜 탈락 실패 결점 더러운 废件 廃棄 報廢 报废 错误 錯誤 스크래치
""")
# Which one of each and its opposite is good depends on whom you ask.
_UNCLEAR = _words("""
    positive positives negative negatives positiv positive negativ positif positifs négatif négatifs positivo
    positivos negativo negativos positief negatief pozytywny pozytywne negatywny negatywne pozitif true false wahr
    vrai faux vero falso verdadero overkill underkill escape escapes doubtful положительный отрицательный
    阳性 阴性 陽性 陰性 양성 음성
""")
_GOOD_SIGNS = frozenset("✓✔☑✅👍👌○◯⭕🙂😀😊")
_FLAWED_SIGNS = frozenset("✗✘☒❌✖✕×⛔🚫👎🙁☹😞😡")
_PAIRS = {
    # Words that say something beside their opposite alone.
    ("g", "ng"), ("g", "n"), ("g", "b"), ("p", "f"), ("o", "x"), ("c", "nc"), ("io", "ni"), ("ok", "n"), ("good", "x"),
    ("tot", "xau"), ("tot", "loi"), ("dat", "khongdat"), ("bo", "dolent"), ("valid", "invalid"), ("valide", "invalide"),
    ("new", "damaged"), ("sound", "unsound"), ("regular", "irregular"), ("free", "defect"), ("bun", "rau"),
    ("right", "wrong"), ("bun", "rebut"), ("可", "不可"), ("tot", "hong"), ("dat", "loi"), ("khongloi", "loi"),
    ("kabul", "red"), ("conforme", "nc"), ("conforming", "nc"), ("conform", "nc"), ("ok", "hs"), ("良", "次"),
    ("良", "否"), ("可", "否"), ("正", "誤"), ("適", "不適"), ("binhthuong", "batthuong"), ("hople", "khonghople"),
    ("sanphamtot", "sanphamloi"), ("gd", "bd"),
}  # fmt: skip
_UNCLEAR_PAIRS = {
    ("pos", "neg"), ("yes", "no"), ("y", "n"), ("ja", "nein"), ("ja", "nee"), ("ja", "nej"), ("oui", "non"),
    ("si", "no"), ("sim", "nao"), ("da", "nu"), ("да", "нет"), ("t", "f"), ("tp", "fp"), ("tp", "tn"), ("tn", "fp"),
    ("tn", "fn"), ("fp", "fn"), ("是", "否"), ("阳", "阴"), ("green", "red"), ("green", "yellow"), ("grun", "rot"),
    ("gruen", "rot"), ("vert", "rouge"), ("verde", "rosso"), ("verde", "rojo"), ("зеленый", "красный"), ("绿", "红"),
    ("緑", "赤"), ("st", "nd"), ("master", "second"), ("prime", "second"), ("ship", "hold"),
}  # fmt: skip
# Too short or too usual to say anything within a longer name.
_ALONE = _words("io ret fel mal god bra hea halb bien fine labi loš")
_NEGATIONS = _words("""
    not no non nicht kein keine ohne without un sans sin sem senza nao não niet geen zonder nie bez ne nem inte ej
    icke ikke ei utan uden uten fara değil не без нет khong không tidak bukan nu není nije nav mitte ekki nincs nem
    לא ללא غير ليس بدون μη όχι χωρίς brez pas नहीं बिना না
""")
_NEGATIONS_BEHIND = _words("değil deyil नहीं না")
"""Those that stand behind what they negate."""
_NEGATING = _words("nicht non not no un on kein nie ne nem не ni in im ir ab dis il o u epä")
_FREE = _words("free frei less los loos fri fria fritt mentes nélkül siz sız süz suz")
_FILLERS = _words("""
    part parts piece pieces image images img imgs pic pics picture pictures photo photos sample samples set data
    dataset class cls folder type item items product products unit units teil teile teilen bild bilder muster probe
    proben ware stück piezas pieza imagen imagenes imágenes pezzi pezzo immagini immagine pièces piece pieces foto
    fotos fotot onderdelen delen delar deler dele obrazy obrazky zdjecia kuvat bilder bilden peças peca
""")
_UNSPACED_NEGATIONS = tuple(_words("無 无 没 沒 未 不 非 没有 沒有 부 불 비 무"))
_UNSPACED_NEGATIONS_BEHIND = tuple(_words("無し 無 无 なし ナシ 없음 없는 無い ない"))
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u1100-\u11ff]")
_SCRIPTS = re.compile(rf"(?<={_CJK.pattern})(?=[A-Za-z])|(?<=[A-Za-z])(?={_CJK.pattern})")
_CAMEL = re.compile(r"(?<=[a-z\u00df-\u00ff])(?=[A-Z\u00c0-\u00de][a-z\u00df-\u00ff]|(?:OK|NG|NOK|KO|IO|NIO)\b)")
_LONGEST_PHRASE = 4
_SHORT = 3
"""Words up to so many letters are not looked for behind a negation that is written together with them, but for ok."""


@lru_cache(maxsize=4096)
def meaning(name: str) -> Meaning | None:
    """What a folder's name says of the parts in it; None where it says nothing.

    Case, accents, digits, separators and words such as "parts" do not count, a negation turns a word round.

    Example:
        >>> [meaning(name) for name in ("01_good", "n.i.O.", "NotOK", "Fehlerfrei", "不良品", "positive", "monday")]
        ['good', 'flawed', 'flawed', 'good', 'flawed', 'unclear', None]
    """
    if signs := _of_signs(name):
        return signs
    squeezed = _squeezed(name)
    if whole := _of_word(squeezed):
        return whole
    said = {*_of_tokens(_tokens(name)), *_of_unspaced(squeezed)}
    if not said:
        return None
    return said.pop() if len(said) == 1 else "unclear"


def _of_signs(name: str) -> Meaning | None:
    """What a name says that is nothing but ticks, crosses, thumbs or faces."""
    signs = {c for c in name if not (c.isspace() or c in "_-.()" or unicodedata.category(c) in ("Mn", "Cf"))}
    if not signs:
        return None
    return "good" if signs <= _GOOD_SIGNS else "flawed" if signs <= _FLAWED_SIGNS else None


def _tokens(name: str) -> list[str]:
    apart = _CAMEL.sub(" ", _SCRIPTS.sub(" ", nfc(name)))
    return [fold(word) for word in "".join(c if _is_of_word(c) else " " for c in apart).split()]


def _squeezed(name: str) -> str:
    return "".join(c for c in fold(name) if _is_of_word(c))


def _is_of_word(character: str) -> bool:
    # Vowels of Thai and of India's scripts are marks, not letters.
    return character.isalpha() or unicodedata.category(character).startswith("M")


def _of_word(word: str) -> Meaning | None:
    """What one word says, negations and fillers written together with it included."""
    if word in _GOOD:
        return "good"
    if word in _FLAWED:
        return "flawed"
    if word in _UNCLEAR:
        return "unclear"
    for prefix in _NEGATING:
        rest = word.removeprefix(prefix)
        if rest != word and (len(rest) > _SHORT or (rest in ("ok", "io") and len(prefix) > 1)):
            if rest in _GOOD:
                return "flawed"
            if rest in _FLAWED and len(prefix) > 1:
                return "good"
    for ending in _FREE:
        if word.removesuffix(ending) in _FLAWED and word.endswith(ending):
            return "good"
    for filler in _FILLERS:  # Gutteile, okparts, ngimages
        rest = word.removesuffix(filler)
        if rest != word and rest in _GOOD | _FLAWED:
            return "good" if rest in _GOOD else "flawed"
    return None


def _of_tokens(words: Sequence[str]) -> set[Meaning]:
    said: list[Meaning] = []
    negated, at = False, 0
    alone = sum(word not in _FILLERS for word in words) == 1
    while at < len(words):
        length = min(_LONGEST_PHRASE, len(words) - at)
        while length > 1 and "".join(words[at : at + length]) not in _GOOD | _FLAWED:
            length -= 1
        word = "".join(words[at : at + length])
        if word in _NEGATIONS_BEHIND and said:
            said[-1] = _opposite(said[-1])
        elif word in _NEGATIONS and at + length < len(words):
            negated = True
        elif word in _FREE and said and said[-1] == "flawed":
            said[-1] = "good"
        elif word in _FILLERS or (word in _ALONE and not alone):
            pass
        elif (of_word := _of_word(word)) is not None:
            said.append(_opposite(of_word) if negated else of_word)
            negated = False
        at += length
    return set(said)


def _opposite(of_word: Meaning) -> Meaning:
    turned: dict[Meaning, Meaning] = {"good": "flawed", "flawed": "good", "unclear": "unclear"}
    return turned[of_word]


def _of_unspaced(name: str) -> set[Meaning]:
    said: set[Meaning] = set()
    if not _CJK.search(name):
        return said
    known = sorted(_UNSPACED_GOOD | _UNSPACED_FLAWED, key=len, reverse=True)
    at = 0
    while at < len(name):
        word = next((word for word in known if name.startswith(word, at)), "")
        if word:
            of_word: Meaning = "good" if word in _UNSPACED_GOOD else "flawed"
            before, behind = name[:at], name[at + len(word) :]
            negated = before.endswith(_UNSPACED_NEGATIONS) or behind.startswith(_UNSPACED_NEGATIONS_BEHIND)
            said.add(_opposite(of_word) if negated else of_word)
        at += max(1, len(word))
    return said


@dataclass(frozen=True)
class Sorted:
    """Folders that lie beside each other, by what their names say; each list in the order given.

    Attributes:
        good: parts are good.
        flawed: parts are flawed.
        unclear: one of them may be good and another flawed: ``0`` and ``1``, ``positive`` and ``negative``.
        unknown: the names say nothing of that kind, as days, cameras and lots do.
    """

    good: list[Path] = field(default_factory=list)
    flawed: list[Path] = field(default_factory=list)
    unclear: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)


def sort_folders(folders: Sequence[Path]) -> Sorted:
    """Sort folders that lie beside each other by what their names say of the parts in them.

    Example:
        >>> [folder.name for folder in sort_folders([Path("iO"), Path("niO"), Path("lot 7")]).flawed]
        ['niO']
        >>> [folder.name for folder in sort_folders([Path("0"), Path("1")]).unclear]
        ['0', '1']
    """
    by_name = {folder: _squeezed(folder.name) for folder in folders}
    names = set(by_name.values())
    pairs = [pair for pair in _PAIRS if names >= set(pair)]
    good, flawed = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    result = Sorted()
    by_meaning = {"good": result.good, "flawed": result.flawed, "unclear": result.unclear, None: result.unknown}
    for folder, name in by_name.items():
        if name in good or name in flawed:
            by_meaning["good" if name in good else "flawed"].append(folder)
        else:
            by_meaning[meaning(folder.name)].append(folder)
    if len(folders) == 2 and result.flawed and result.unknown and _may_be_turned(result.flawed[0], result.unknown[0]):
        result.unclear.extend((result.flawed.pop(), result.unknown.pop()))
    if len(folders) == len(result.good) == 2 and (longer := _says_more(result.good)):
        result.good.remove(longer)
        result.unclear.append(longer)
    if not result.good:
        opposed = _opposed(result.unknown)
        result.unclear.extend(opposed)
        result.unknown[:] = [folder for folder in result.unknown if folder not in opposed]
    return result


def _says_more(folders: Sequence[Path]) -> Path | None:
    """Of two good names, the one that is the other with an unknown word, which may be a negation; perhaps none."""
    shorter, longer = sorted(folders, key=lambda folder: len(_tokens(folder.name)))
    words, more = set(_tokens(shorter.name)), set(_tokens(longer.name)) - _FILLERS - _PLACES
    return longer if words < words | more and words <= set(_tokens(longer.name)) else None


def _may_be_turned(flawed: Path, unknown: Path) -> bool:
    """Whether both names hold the word that says flawed, in another ending: in a language that is not known it may be
    negated.
    """
    words = [word for word in _tokens(flawed.name) if _of_word(word) == "flawed"]
    others = [word for word in _tokens(unknown.name) if len(word) > _SHORT]
    return any(other.startswith(word[: max(_SHORT + 1, len(word) - 2)]) for word in words for other in others)


_LABEL_WORDS = _words("""
    class cls klasse clase classe label category cat kategorie target id y grade quality ware sorte wahl güte qualität
    qualité calidad qualità
""")


def _opposed(folders: Sequence[Path]) -> list[Path]:
    """Folders of no known word that look like the two classes of a labelled set."""
    names = {folder: fold(folder.name).strip() for folder in folders}
    squeezed = {_squeezed(name) for name in names.values()}
    if pairs := [pair for pair in _UNCLEAR_PAIRS if squeezed >= {*pair}]:
        return [folder for folder in folders if any(_squeezed(folder.name) in pair for pair in pairs)]
    if len(folders) == 2 and not any(map(str.isalnum, "".join(names.values()))):
        return list(folders)  # signs
    if len(folders) == 2 and all(re.fullmatch(r"[-+]?\d{1,2}|[^\W\d_]|[-+]|[-+]1", name) for name in names.values()):
        return list(folders)
    if {"0", "1"} <= {name.lstrip("0") or "0" for name in names.values() if name.isdecimal()}:
        return [folder for folder, name in names.items() if name.isdecimal()]
    numbered = [f for f, name in names.items() if re.fullmatch(r"([^\W\d_]+)[\W_]*-?\d{1,3}", name)]
    classes = [f for f in numbered if _squeezed(f.name) in _LABEL_WORDS]
    classes += [f for f in folders if f not in classes and _is_lettered_class(_tokens(f.name))]
    return classes if len(classes) > 1 else _negated(folders)


def _is_lettered_class(words: Sequence[str]) -> bool:
    """As ``grade A`` and ``B-Ware``."""
    return len(words) == 2 and sorted(map(len, words))[0] == 1 and not _LABEL_WORDS.isdisjoint(words)


def _negated(folders: Sequence[Path]) -> list[Path]:
    """Two names of which one is the other with a negation, in words that are not known."""
    by_word = {_squeezed(folder.name): folder for folder in folders}
    for word, folder in by_word.items():
        for negation in _NEGATIONS | _NEGATING:
            if len(word) > _SHORT and (other := by_word.get(negation + word)) is not None:
                return [folder, other]
    for negated, other in itertools.permutations(folders, 2):
        words, others = set(_tokens(negated.name)), set(_tokens(other.name))
        if words & _NEGATIONS and not others & _NEGATIONS and set() < words - _NEGATIONS <= others:
            return [negated, other]  # ohne_Befund, mit_Befund
    return []


_OTHER_ROLES = _words("""
    train training test testing tests eval evaluation labels annotation annotations segmentation segmentations
    overlay overlays heatmap heatmaps preview previews predictions
""")


_MARKS = _words("mask masks maske masken gt ground truth groundtruth seg segmentation segmentations")
_DRAWINGS = _words("overlay overlays heatmap heatmaps annotated annotation annotations marked")


def companion_folders(folders: Iterable[Path]) -> dict[Path, Path]:
    """The folders that hold masks or overlays of the images in another one, by their names.

    Returns:
        By each such folder the one that has the images.

    Example:
        >>> folders = [Path(name) for name in ("good", "good_mask", "img ng", "GT ng")]
        >>> {companion.name: images.name for companion, images in companion_folders(folders).items()}
        {'good_mask': 'good', 'GT ng': 'img ng'}
        >>> companion_folders([Path("mask ok"), Path("mask ng")])  # parts that are masks
        {}
    """
    images: dict[tuple[frozenset[str], tuple[str, ...]], Path] = {}
    others: dict[Path, tuple[frozenset[str], tuple[str, ...]]] = {}
    for folder in folders:
        words = frozenset(_tokens(folder.name))
        key = words - _MARKS - _DRAWINGS - _FILLERS, tuple(re.findall(r"\d+", folder.name))
        if words.isdisjoint(_MARKS | _DRAWINGS):
            images.setdefault(key, folder)
        elif key[0]:
            others[folder] = key
    return {folder: images[key] for folder, key in others.items() if key in images}


def speaks_of_masks(name: str) -> bool:
    """Whether a word of a name means masks, not overlays or the like."""
    return not _MARKS.isdisjoint(_tokens(name))


_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test", "tests": "test",
}  # fmt: skip


def split_said(name: str) -> Split | None:
    """The split that a name speaks of, in a word of its own.

    Example:
        >>> [split_said(name) for name in ("Train_OK", "good-test", "contest")]
        ['train', 'test', None]
    """
    said = {_SPLITS[word] for word in _tokens(name) if word in _SPLITS}
    return said.pop() if len(said) == 1 else None


def has_another_role(name: str) -> bool:
    """Whether a name promises something else than images of parts to learn from: a test split, labels, overlays."""
    return fold(name) in _OTHER_ROLES


_PLACES = _words("""
    day date week month shift lot batch charge los cam camera kamera view side line linie station machine maschine
    session run left right top bottom front back links rechts oben unten vorne hinten monday tuesday wednesday
    thursday friday saturday sunday mon tue wed thu fri sat sun january february march april may june july august
    september october november december jan feb mar apr jun jul aug sep sept oct nov dec montag dienstag mittwoch
    donnerstag freitag samstag sonntag morning evening night early late am pm north south east west
""")


def say_when_or_where(folders: Sequence[Path]) -> bool:
    """Whether all names speak of days, cameras, lots and the like, or number one thing: ``part-1``, ``part-2``."""
    if all(says_when_or_where(folder.name) for folder in folders):
        return True
    return len({tuple(_tokens(folder.name)) for folder in folders}) == 1


def says_when_or_where(name: str) -> bool:
    """Whether a name speaks of a day, a camera, a lot or the like, or is a number alone.

    Example:
        >>> [says_when_or_where(name) for name in ("2026-11-30", "Camera 2", "images")]
        [True, True, False]
    """
    words = _tokens(name)
    return any(map(str.isdecimal, name)) if not words else any(word in _PLACES for word in words)
