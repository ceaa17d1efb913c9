"""Messages have one form."""

from s_resnet.errors import InvalidData, message


def test_a_message_says_where_what_got_expected_and_what_to_do():
    said = message("kernel", "bias", "3 rows", "4 rows", "Give the rows of these steps")
    assert said == "kernel: bias, got 3 rows; expected 4 rows. Give the rows of these steps."
    assert message("convert", "", 3, "a float", "Pass one.") == "convert: got 3; expected a float. Pass one."


def test_what_a_terminal_would_obey_is_no_part_of_an_error():
    assert str(InvalidData(message("a\x1b[31m", "", "b\nc", "d", "e"))) == "a?[31m: got b c; expected d. e."
